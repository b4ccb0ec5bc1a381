"""What the handoff tells its worker; the worker carries it to the engine and the router."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.errors import PeerLost, ServingError
from pdserve.ids import SequenceKey


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this worker is, and what its KV looks like."""

    worker_id: str
    boot_id: bytes
    fingerprint: bytes  # of the KvLayout
    block_bytes: int
    host_id: str  # two workers with the same can share memory
    gpu_uuid: str = ""  # where its pool lies; empty: in host memory
    nccl: tuple[int, int] | None = None  # NCCL's release, if it has one


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """The worker at the other end."""

    worker_id: str
    boot_id: bytes
    address: str  # host:port of its WorkerService


@dataclass(frozen=True, slots=True)
class Stopped:
    """The engine must leave the sequence alone and keep its blocks."""

    key: SequenceKey


@dataclass(frozen=True, slots=True)
class Freed:
    """Nothing can touch the sequence's blocks: free them."""

    key: SequenceKey
    committed: bool  # source: the decode worker owns the sequence


@dataclass(frozen=True, slots=True)
class Committed:
    """Target: the KV is verified in place; run the sequence from this token on."""

    key: SequenceKey
    first_token_id: int
    bytes_moved: int
    blocks_skipped: int
    transfer_s: float  # first block announced until the last was verified; includes waiting for chunks
    busy_s: float  # of it, with a block under way
    source_worker_id: str
    transport: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The handoff cannot go on, and not by this worker's own wish; the router must hear of it. `Freed` follows."""

    key: SequenceKey
    error: ServingError


Notice = Stopped | Freed | Committed | Failed


def first_error(caught: BaseException, what: str) -> ServingError:
    """The reason in an exception (or a group of them) as an error of ours; anything foreign is a lost peer."""
    while isinstance(caught, BaseExceptionGroup):
        ours = [e for e in caught.exceptions if isinstance(e, ServingError)]
        caught = ours[0] if ours else caught.exceptions[0]
    if isinstance(caught, ServingError):
        return caught
    first_line = str(caught).split("\n", 1)[0][:200]
    return PeerLost(f"{what} lost: {type(caught).__name__} {first_line}".rstrip())
