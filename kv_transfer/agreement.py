"""Which transport two workers take, by what the source's hello says and what the target has and sees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from kv_transfer.notices import Identity
from kv_transfer.transports.gpu_choice import GPU_TRANSPORTS, GpuPlace, choose, obstacle
from kv_transfer.transports.interface import Transport
from pdserve.errors import IncompatiblePeer
from pdserve.v1 import worker_pb2 as pb

MAX_PEERS = 256  # remembered: every restart of a worker is another peer


class UnusableTransports:
    """Those that could not be opened with a peer, by its boot id; of the peers that failed last."""

    def __init__(self) -> None:
        self._names: OrderedDict[bytes, frozenset[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def of(self, boot_id: bytes) -> frozenset[str]:
        return self._names.get(boot_id, frozenset())

    def add(self, boot_id: bytes, name: str) -> None:
        self._names[boot_id] = self.of(boot_id) | {name}
        self._names.move_to_end(boot_id)
        if len(self._names) > MAX_PEERS:
            self._names.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the target tells the source."""

    transport: str
    has_another: bool  # should this one fail to open, the next pair of the two can take another


def place_of(identity: Identity) -> GpuPlace:
    """Where a worker's pool lies."""
    return GpuPlace(identity.host_id, identity.gpu_uuid, identity.nccl)


def source_place(hello: pb.PairHello) -> GpuPlace:
    """Where the source's pool lies."""
    nccl = (hello.nccl_major, hello.nccl_minor)
    return GpuPlace(hello.host_id, hello.gpu_uuid, nccl if any(nccl) else None)


def agree(
    ours: Mapping[str, Transport], mine: GpuPlace, hello: pb.PairHello, unusable: AbstractSet[str], *, peer_access: bool
) -> Agreement:
    """The best that both have, that can carry KV between the two, and that is not in `unusable`.

    `unusable`: failed to open between these two before; the last that is left is tried again. Raises IncompatiblePeer,
    with every reason, when they have none in common. `peer_access`: see gpu_choice.choose.
    """
    offered, theirs = list(hello.transports), source_place(hello)
    if mine.gpu_uuid or theirs.gpu_uuid:
        names = [n for n in choose("auto", mine, theirs, peer_access=peer_access) if n in ours and n in offered]
    else:
        same_host = mine.host_id == theirs.host_id
        names = [n for n in offered if n in ours and ours[n].is_available(same_process=False, same_host=same_host)]
    if not names:
        reasons = _reasons(list(ours), mine, offered, theirs, peer_access)
        raise IncompatiblePeer(f"no transport in common with {hello.source_worker_id}: {reasons}")
    usable = [name for name in names if name not in unusable] or names[-1:]
    return Agreement(usable[0], len(usable) > 1)


def _reasons(ours: list[str], mine: GpuPlace, offered: Sequence[str], theirs: GpuPlace, peer_access: bool) -> str:
    reasons = [f"it has {', '.join(offered) or 'none'}, this worker {', '.join(ours)}"]
    for name in ours:
        if name in offered and name in GPU_TRANSPORTS:
            reasons.append(f"{name}: {obstacle(name, mine, theirs, peer_access=peer_access)}")
    return "; ".join(reasons)
