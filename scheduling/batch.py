"""What a scheduler gives: the batch of one step, and what became of its sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason, SampledToken
from scheduling.sequence import Sequence
from scheduling.step import SequenceStep


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one engine; checked when made, ValueError names the field."""

    max_model_len: int  # tokens of prompt and output, at most
    max_num_seqs: int = 256  # running and reserved sequences, at most
    max_num_batched_tokens: int = 2048  # tokens computed in one step, at most; >= max_num_seqs so that no decode stalls
    max_queued_sequences: int = 1024  # waiting, at most (those preempted come on top)
    watermark: float = 0.01  # share of the blocks left free at admission while something that may grow runs
    mixed_prefill_tokens: int | None = None  # prompt tokens in a step that also decodes, at most; None: the budget

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_queued_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len is {self.max_model_len}, must be at least 2")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, "
                f"must be at least max_num_seqs, {self.max_num_seqs}"
            )
        if not 0.0 <= self.watermark < 1.0:
            raise ValueError(f"watermark is {self.watermark}, must be in [0, 1)")
        if self.mixed_prefill_tokens is not None and self.mixed_prefill_tokens < 1:
            raise ValueError(f"mixed_prefill_tokens is {self.mixed_prefill_tokens}, must be at least 1")

    def watermark_blocks(self, num_blocks: int) -> int:
        """The watermark in blocks of a pool."""
        return math.ceil(self.watermark * num_blocks)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. Steps may be empty: then nothing can be computed until something outside changes."""

    steps: tuple[SequenceStep, ...]
    reserved: tuple[Sequence, ...]  # DECODE sequences that have just got room; their first `num_cached_blocks` are here
    preempted: tuple[SequenceKey, ...]  # lost their blocks, wait to be computed again
    prefill_tokens: int = 0  # in steps that compute a prompt
    decode_sequences: int = 0  # steps of one token after the prompt
    context_tokens: int = 0  # sum over the steps of their ends: positions whose KV is read


@dataclass(frozen=True, slots=True)
class ReadyBlocks:
    """Blocks of a PREFILL sequence whose KV is complete from now on: a transfer may read them."""

    first: int  # index of the first within the sequence
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]  # of each block


@dataclass(frozen=True, slots=True)
class FirstTokenTiming:
    """Where the time to the first token sampled here went."""

    queue_s: float  # arrival (DECODE: commit) until the first step
    first_token_s: float  # first step until this token
    cached_tokens: int  # found in the prefix cache


@dataclass(slots=True)  # not frozen, though nobody changes it: one per token, and frozen ones cost several times more
class SequenceUpdate:
    """What became of one sequence. The one with `finish_reason` or `error` is its last."""

    key: SequenceKey
    output_index: int | None = None  # of `token` among the output tokens, from 0
    token: SampledToken | None = None
    finish_reason: FinishReason | None = None
    error: ServingError | None = None
    ready_blocks: ReadyBlocks | None = None  # PREFILL only
    first_token_timing: FirstTokenTiming | None = None  # with the first token sampled here
    holds_blocks: bool = (
        False  # with the last update: it is QUARANTINED; call abort when no transfer touches its blocks
    )
    started_after_s: float | None = None  # with a prompt's first step, if it has more: arrival until that step

    @property
    def is_plain(self) -> bool:
        """A token's id, and the sequence goes on: nothing else."""
        return (
            self.token is not None
            and self.token.logprobs is None
            and self.finish_reason is None
            and self.first_token_timing is None
            and self.ready_blocks is None
            and self.error is None
        )

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None
