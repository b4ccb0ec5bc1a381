"""Sampling parameters and what a sampler gives back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # end of sequence, stop token or stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"


MAX_CONSTRAINT_BYTES = 64 << 10


class ConstraintKind(Enum):
    """In which language a constraint is written."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"  # any JSON object; without a text
    REGEX = "regex"  # of Rust's `regex`, for the whole output
    CHOICE = "choice"  # a JSON list of strings, one of which is the whole output
    GRAMMAR = "grammar"  # Lark or GBNF


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text of an output must be, from its first token to its end."""

    kind: ConstraintKind
    text: str = ""


def choice_of(texts: Iterable[str]) -> Constraint:
    """The output is one of these."""
    return Constraint(ConstraintKind.CHOICE, json.dumps(list(texts), ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence's tokens are chosen; every default is resolved (the router did), every value is in range."""

    max_tokens: int  # output tokens at most, >= 1
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # [0, 1]; 0 is off
    repetition_penalty: float = 1.0  # over prompt and output, as in CTRL (Keskar et al. 2019, section 4.1)
    presence_penalty: float = 0.0  # over output only
    frequency_penalty: float = 0.0  # over output only
    seed: int = 0  # u64
    choice_index: int = 0  # with seed and position names the random number
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    min_tokens: int = 0  # end-of-sequence and stop tokens are impossible before this many
    stop_token_ids: tuple[int, ...] = ()  # the client's
    eos_token_ids: tuple[int, ...] = ()  # the model's; empty with ignore_eos
    logprobs: int | None = None  # None: none; n: the chosen token's and the n best
    constraint: Constraint | None = None  # then min_tokens is 0 and eos_token_ids are not empty

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends the sequence."""
        return self.stop_token_ids + self.eos_token_ids


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural) at one position, of the model's own distribution before any sampling parameter."""

    token_id: int  # the chosen token
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), best first


class SampledToken(NamedTuple):
    """One token as a sampler chose it; a tuple, because there are many and frozen dataclasses are slow to make."""

    token_id: int
    logprobs: TokenLogprobs | None = None  # None unless asked for
