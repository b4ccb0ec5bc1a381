"""What moves KV blocks from one pool to another, whatever the wire.

    Transport ── open_source ──> SourceChannel   the prefill worker's end of a pair
              └─ open_target ──> TargetChannel   the decode worker's end
                                   └ post() ──> Receipt

A pair lives between two process starts and carries any number of transfers at once. It is thrown away on any timeout or
error and made anew under the next epoch. Channels belong to the event loop they were opened on; copies, waits and
digests run on threads of their own.

Memory: from post() until its Receipt is settled, or close() returned, the target blocks may be written at any time and
belong to nobody else. Source blocks may be read from the moment they are named until send() returned (pushed) or the
target's receipt is settled (fetched).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kv_transfer.transports.background import call_soon, settled_in_spite_of_cancellation
from pdserve.errors import PeerLost, ServingError
from pdserve.kv_memory import KvMemory

DEFAULT_TIMEOUT_S = 5.0
"""How long one operation may stand still before its pair is given up."""


@dataclass(frozen=True, slots=True)
class PairInfo:
    """What both ends know after the hello."""

    source_boot_id: bytes
    target_boot_id: bytes
    epoch: int
    nonce: bytes  # 16 random bytes; in every descriptor
    block_bytes: int


@dataclass(frozen=True, slots=True)
class BlockMove:
    """One block of a transfer: from where to where."""

    index: int  # of the block within the transfer
    tag: int  # even, never reused, given by the target; one for neighbours on both sides (framing.give_tags)
    source_block: int
    source_generation: int
    target_block: int  # unused on the source


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Totals of one end of a pair since it was opened."""

    moved_bytes: int = 0
    moved_blocks: int = 0
    busy_s: float = 0.0  # time with a block under way
    stale_blocks: int = 0  # refused: the generation had moved on
    corrupt_blocks: int = 0  # refused: digest or descriptor


class CannotOpen(PeerLost):
    """This way to the peer could not be opened, though the peer may well be there: another may be tried."""


class Rendezvous(Protocol):
    """A few small values that the two ends tell each other, over the authenticated control stream. Thread-safe."""

    def set(self, key: str, value: bytes) -> None:
        """Tell the peer. Does not block."""

    def get(self, key: str, timeout_s: float) -> bytes:
        """What the peer set. Blocks the calling thread; PeerLost on timeout or a closed stream."""


class Receipt:
    """The outcome of one post(): settled once, after which nothing writes its target blocks any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outcome: asyncio.Future[ServingError | None] = loop.create_future()

    @property
    def is_settled(self) -> bool:
        return self._outcome.done()

    def when_settled(self, function: Callable[[], None]) -> None:
        """Call this on the loop once it is settled."""
        self._outcome.add_done_callback(lambda _: function())

    def settle(self, error: ServingError | None) -> None:
        """For transports: all blocks verified in place (None), or why not. Any thread; later calls change nothing."""
        call_soon(self._loop, self._set, error)

    def _set(self, error: ServingError | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(error)

    async def wait(self) -> None:
        """Return when every block is verified in place.

        Raises TransferCorrupt or PeerLost. Never ends earlier than the last possible write: a cancelled waiter is
        cancelled only then, which the transport's timeouts bound.
        """
        error = await settled_in_spite_of_cancellation(self._outcome)
        if error is not None:
            raise error


class SourceChannel(Protocol):
    """The prefill worker's end of a pair."""

    @property
    def stats(self) -> ChannelStats: ...

    async def send(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        """Send the blocks of one post, which the target has credited; returns when they may be reused.

        Pushed transports only. Called once per post, in the order of the posts, with the same moves: both ends cut them
        into messages alike. Raises PeerLost, or TransferCorrupt when a block is not of the generation named; either
        way the pair is over. A cancelled caller is cancelled only when the blocks are no longer read.
        """

    async def wait_lost(self) -> None:
        """Return when the peer is gone or this end was closed."""

    async def close(self) -> None:
        """End the pair. Safe to repeat; after it nothing reads or writes memory for this channel any more."""


class TargetChannel(Protocol):
    """The decode worker's end of a pair."""

    @property
    def pushed(self) -> bool:
        """True: the source must be credited and sends. False: the target fetches by itself."""

    @property
    def stats(self) -> ChannelStats: ...

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        """Expect (pushed) or fetch these blocks. Memory may be written from now on. Does not block.

        Raises PeerLost when the pair is over, QueueFull when too many posts wait.
        """

    async def wait_lost(self) -> None:
        """Return when the peer is gone or this end was closed."""

    async def close(self) -> None:
        """End the pair. Safe to repeat; after it every receipt is settled and nothing touches memory any more."""


class Transport(Protocol):
    """Opens both kinds of ends. One per process and kind; holds what its pairs share."""

    @property
    def name(self) -> str: ...

    @property
    def pushed(self) -> bool: ...

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        """Can two workers that stand to each other like this use it?"""

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> SourceChannel:
        """Meet the target. Raises PeerLost when it does not come in time."""

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> TargetChannel:
        """Meet the source. Raises PeerLost when it does not come in time, CannotOpen where this way may never work,
        IncompatiblePeer when it is another."""
