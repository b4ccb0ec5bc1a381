"""From constraints to matchers, over the model's own tokens."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from engine.grammar.matcher import GrammarMatcher
from pdserve.errors import BadSampling, RequestError
from pdserve.grammar import grammar_of, parser_limits
from pdserve.sampling import Constraint

log = logging.getLogger(__name__)

MAX_KEPT = 64  # compiled grammars; usually less than a megabyte each


class GrammarCompiler:
    """Of one model. Used by a few threads, none of them the engine's: a compilation may take a second."""

    def __init__(self, directory: str | Path, vocab_size: int) -> None:
        """`directory`: the checkpoint, read when the first constraint comes; `vocab_size`: columns of the logits."""
        self._directory = Path(directory)
        self._vocab_size = vocab_size
        self._tokenizers: dict[tuple[int, ...], LLTokenizer] = {}  # by end-of-sequence tokens: one, the model's
        self._kept: OrderedDict[tuple[Constraint, tuple[int, ...]], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()  # of what is kept; never held while something is compiled

    def matcher(self, constraint: Constraint, eos_token_ids: tuple[int, ...]) -> GrammarMatcher:
        """At the start of the constraint, for one sequence.

        Cost: a copy where the constraint was compiled lately. Raises RequestError for one that cannot be, or a model
        whose tokenizer cannot be constrained.
        """
        key = constraint, eos_token_ids
        with self._lock:
            compiled = self._kept.get(key)
        if compiled is None:
            compiled = self._compile(constraint, eos_token_ids)
        with self._lock:
            self._kept[key] = compiled
            self._kept.move_to_end(key)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return GrammarMatcher(compiled.deep_copy())

    def _compile(self, constraint: Constraint, eos_token_ids: tuple[int, ...]) -> LLMatcher:
        if not eos_token_ids:
            raise BadSampling("a constraint needs an end-of-sequence token")
        tokenizer = self._tokenizers.get(eos_token_ids)
        if tokenizer is None:
            tokenizer = _tokenizer(self._directory, self._vocab_size, eos_token_ids)
            self._tokenizers = {eos_token_ids: tokenizer}
        compiled = LLMatcher(tokenizer, grammar_of(constraint), log_level=0, limits=parser_limits())
        if compiled.is_error():
            raise BadSampling(f"the constraint cannot be used: {compiled.get_error().splitlines()[0][:200]}")
        return compiled


def _tokenizer(directory: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    """Cost: about a second for 150,000 tokens."""
    try:
        definition = _definition(directory)
        try:
            return LLTokenizer(definition, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except ValueError as error:
            if "vocab size too small" not in str(error):
                raise
            return LLTokenizer(definition, eos_token=list(eos_token_ids))  # ids that have no logits are cut off later
    except (OSError, ValueError) as error:
        log.warning("no constraints for %s: %s", directory, error)
        raise RequestError(f"the model's tokenizer cannot be constrained: {str(error).splitlines()[0]:.200}") from None


def _definition(directory: Path) -> str:
    """The tokenizer as tokenizer.json has it, or as transformers would write it."""
    file = directory / "tokenizer.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    from transformers import AutoTokenizer  # loaded already, by the model

    tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    return str(tokenizer.backend_tokenizer.to_str())
