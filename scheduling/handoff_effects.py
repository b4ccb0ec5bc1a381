"""What the state machines of a handoff ask of the shell around them; see scheduling/handoff.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TellOffer:
    """P -> D: the prompt is being computed."""

    num_blocks: int


@dataclass(frozen=True, slots=True)
class TellReady:
    """P -> D: these blocks are complete; indices first, first + 1, ..."""

    first: int
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TellComplete:
    """P -> D: the prompt is computed; this is token 1."""

    first_token_id: int


@dataclass(frozen=True, slots=True)
class TellReserved:
    """D -> P: there is room; the first `skip` blocks are here already."""

    skip: int


@dataclass(frozen=True, slots=True)
class TellCommit:
    """D -> P: D owns the sequence."""


@dataclass(frozen=True, slots=True)
class TellAbort:
    """To the peer: it is off."""

    reason: str


@dataclass(frozen=True, slots=True)
class TellAbortAck:
    """To the peer: nothing of it is in flight here any more."""


@dataclass(frozen=True, slots=True)
class Send:
    """P: send these credited blocks, then report `on_sent(len)`."""

    indices: tuple[int, ...]
    tags: tuple[int, ...]
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Receive:
    """D: post receives for these blocks (and credit them), then report `on_received(len)` or abort."""

    indices: tuple[int, ...]
    source_blocks: tuple[int, ...]
    generations: tuple[int, ...]
    target_blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CommitSequence:
    """D: every block is verified; the engine may run the sequence from this token on."""

    first_token_id: int


@dataclass(frozen=True, slots=True)
class StopSequence:
    """The engine must not touch the sequence any more, but its blocks stay: a transfer may still use them."""


@dataclass(frozen=True, slots=True)
class FreeBlocks:
    """Nothing can touch the blocks: the engine frees them. The last effect of a transfer."""

    committed: bool  # P: the handoff succeeded


Effect = (
    TellOffer | TellReady | TellComplete | TellReserved | TellCommit | TellAbort | TellAbortAck
    | Send | Receive | CommitSequence | StopSequence | FreeBlocks
)  # fmt: skip
