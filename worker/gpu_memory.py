"""How a worker divides its share of a GPU: arithmetic alone, and errors that say what to change."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.exit import ExitCode, StartError

OUTSIDE_BYTES = 768 << 20
"""What torch does not count: CUDA's context, loaded kernels, a few pairs. An estimate, to be measured."""


@dataclass(frozen=True, slots=True)
class CardShare:
    """The part of a card that one worker may use."""

    device: str  # cuda:0
    total_bytes: int
    share: float  # --gpu-memory-utilization, divided by the workers on the card

    @property
    def usable_bytes(self) -> int:
        return int(self.total_bytes * self.share)

    def __str__(self) -> str:
        return f"{self.device} has {shown(self.total_bytes)}, of which this worker may use {shown(self.usable_bytes)}"


@dataclass(frozen=True, slots=True)
class Need:
    """The least KV that is worth starting with: one sequence of the longest context."""

    tokens: int
    kv_bytes: int

    def __str__(self) -> str:
        return f"the KV of one context of {self.tokens:,} tokens takes {shown(self.kv_bytes)}"


def kv_budget(card: CardShare, taken_bytes: int, need: Need) -> int:
    """Bytes for KV: the share less what weights and the largest steps were seen to take, and what lies outside.

    Raises StartError when that is less than one context. The share decides, not what is free: workers that start at
    once must not count each other's half-loaded state.
    """
    left = card.usable_bytes - taken_bytes - OUTSIDE_BYTES
    if left < need.kv_bytes:
        raise StartError(
            f"{card} (--gpu-memory-utilization, divided by the workers there); weights and the largest step take "
            f"{shown(taken_bytes)}, CUDA itself {shown(OUTSIDE_BYTES)}, and {need}: {shown(need.kv_bytes - left)} too "
            "much; raise --gpu-memory-utilization, or lower --max-model-len, --max-num-batched-tokens or "
            "--max-num-seqs, or start fewer workers per GPU",
            ExitCode.ENVIRONMENT,
        )
    return left


def check_free(card: CardShare, free_bytes: int, kv_bytes: int) -> None:
    """StartError when the pool does not fit into what the card has free, whoever uses the rest."""
    if kv_bytes > free_bytes:
        raise StartError(
            f"the KV pool is {shown(kv_bytes)}; {card.device} has {shown(free_bytes)} free of "
            f"{shown(card.total_bytes)}: stop what else uses it, or lower --gpu-memory-utilization or --kv-bytes",
            ExitCode.ENVIRONMENT,
        )


def out_of_memory(card: CardShare, doing: str, free_bytes: int) -> StartError:
    """For an allocation that failed."""
    return StartError(
        f"{doing} takes more memory than there is: {card}, and {shown(free_bytes)} is free; a smaller model, "
        "fewer workers per GPU, a lower --max-num-batched-tokens, --max-num-seqs or --kv-bytes may fit",
        ExitCode.ENVIRONMENT,
    )


def shown(count: int) -> str:
    """Bytes, as people read them."""
    return f"{count / 2**30:.2f} GiB"
