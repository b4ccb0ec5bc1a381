"""Constraints as llguidance grammars, and the limits that router and workers share.

llguidance's own limits are fuel: they stop most hostile grammars, not all (nested counted repetitions, long chains of
rules). What is beyond them is found by pdserve/grammar_trial.py in a process of its own, before any worker sees it.
"""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher, LLParserLimits, grammar_from

from pdserve.errors import BadSampling
from pdserve.sampling import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind

MAX_NESTING = 48  # of a JSON schema; llguidance's own reader of JSON stops at 128
MAX_SPACES = 32
"""White space between two parts of JSON, at most: a model that likes spaces must not go on with them for ever."""

_SCHEMA_OPTIONS = {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{MAX_SPACES}}}", "lenient": False}


def parser_limits() -> LLParserLimits:
    """Of one grammar. About 2 ms of a lexer, 1 ms of a parser for each mask; 40 MB of states at most."""
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=20_000,
        max_grammar_size=50_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def grammar_of(constraint: Constraint) -> str:
    """What `LLMatcher` takes. Raises BadSampling for text that is too long, nested too deep, or no text of its kind.

    It may still be a grammar that llguidance refuses, and in its own words.
    """
    size = len(constraint.text.encode("utf-8", "surrogatepass"))
    if size > MAX_CONSTRAINT_BYTES:
        raise BadSampling(f"is {size:,} bytes long, limit {MAX_CONSTRAINT_BYTES:,}")
    if not size and constraint.kind is not ConstraintKind.JSON_OBJECT:
        raise BadSampling("is empty")
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return _schema_grammar('{"type":"object"}')
        case ConstraintKind.JSON_SCHEMA:
            _check_schema(_read_json(constraint.text))
            return _schema_grammar(constraint.text)
        case ConstraintKind.REGEX:
            return str(LLMatcher.grammar_from_regex(constraint.text))
        case ConstraintKind.CHOICE:
            _check_choices(_read_json(constraint.text))
            return str(grammar_from("choice", constraint.text))
        case ConstraintKind.GRAMMAR:
            try:
                return str(grammar_from("grammar", constraint.text))
            except ValueError as error:
                raise BadSampling(f"is neither Lark nor GBNF: {error}") from None


def patterns_of(constraint: Constraint) -> list[str]:
    """Every regular expression in a JSON schema: each may be costly where a trial of the whole never comes to it."""
    if constraint.kind is not ConstraintKind.JSON_SCHEMA:
        return []
    found: list[str] = []
    waiting = [_read_json(constraint.text)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            pattern, keys = value.get("pattern"), value.get("patternProperties")
            found += [pattern] if isinstance(pattern, str) else []
            found += keys if isinstance(keys, dict) else []
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


def _schema_grammar(schema: str) -> str:
    try:
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=_SCHEMA_OPTIONS))
    except ValueError as error:  # llguidance reads JSON more strictly than Python: no NaN, half surrogate, huge number
        raise BadSampling(f"is not JSON: {error}") from None


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise BadSampling(f"is nested deeper than {MAX_NESTING} levels") from None
    except ValueError as error:
        raise BadSampling(f"is not JSON: {error}") from None


def _check_schema(schema: Any) -> None:
    if not isinstance(schema, dict):
        raise BadSampling("must be a JSON object")
    level: list[Any] = [schema]
    depth = 0
    while level:
        if depth > MAX_NESTING:
            raise BadSampling(f"is nested deeper than {MAX_NESTING} levels")
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        depth += 1


def _check_choices(choices: Any) -> None:
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) and one for one in choices):
        raise BadSampling("must be a list of strings that are not empty, at least one")
