"""Within one process: the target copies straight from the source's pool. For tests and colocated roles."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from kv_transfer.transports.background import Flag, call_in_thread
from kv_transfer.transports.interface import DEFAULT_TIMEOUT_S, PairInfo, Rendezvous
from kv_transfer.transports.pull import PullSource, PullTarget
from pdserve.errors import IncompatiblePeer, PeerLost
from pdserve.kv_memory import KvMemory

_MEET = "in-process"


@dataclass(slots=True, eq=False)
class _Meeting:
    """What the two ends of one pair share."""

    pair: PairInfo
    memory: KvMemory  # the source's
    flags: list[Flag] = field(default_factory=list)  # one per end, each on its own loop
    over: bool = False


class _Registry:
    """Every pair of this process, by source, target and epoch: a source registers, its target looks up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meetings: dict[tuple[bytes, bytes, int], _Meeting] = {}

    def add(self, meeting: _Meeting, flag: Flag) -> None:
        with self._lock:
            self._meetings[_key(meeting.pair)] = meeting
            meeting.flags.append(flag)

    def join(self, pair: PairInfo, flag: Flag) -> _Meeting:
        with self._lock:
            meeting = self._meetings.get(_key(pair))
            if meeting is None or meeting.over:
                raise PeerLost("the source is not in this process, or gone")
            if meeting.pair != pair:
                raise IncompatiblePeer("the source holds another pair under this epoch")
            meeting.flags.append(flag)
            return meeting

    def end(self, meeting: _Meeting) -> None:
        with self._lock:
            meeting.over = True
            if self._meetings.get(_key(meeting.pair)) is meeting:
                del self._meetings[_key(meeting.pair)]
        for flag in meeting.flags:
            flag.raise_()


def _key(pair: PairInfo) -> tuple[bytes, bytes, int]:
    return (pair.source_boot_id, pair.target_boot_id, pair.epoch)


_REGISTRY = _Registry()


class InProcessTransport:
    """Fetches from a pool in the same address space; either end's close ends both."""

    name = "in_process"
    pushed = False

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        return same_process

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PullSource:
        assert pair.block_bytes == memory.block_bytes
        lost = Flag(asyncio.get_running_loop())
        meeting = _Meeting(pair, memory)
        _REGISTRY.add(meeting, lost)
        rendezvous.set(_MEET, b"here")
        return PullSource("in-process", lost, lambda: _REGISTRY.end(meeting))

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PullTarget:
        assert pair.block_bytes == memory.block_bytes
        lost = Flag(asyncio.get_running_loop())
        await call_in_thread("in-process-open", lambda: rendezvous.get(_MEET, self._timeout_s), dispose=lambda _: None)
        meeting = _REGISTRY.join(pair, lost)
        return PullTarget("in-process", meeting.memory, memory, lost, lambda: _REGISTRY.end(meeting))
