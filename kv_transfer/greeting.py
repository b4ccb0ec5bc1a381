"""How two workers greet: the source says who it is and what its KV looks like, the target whether they can talk.

Which transport they then take is agreement.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

from kv_transfer.notices import Identity
from pdserve.errors import IncompatiblePeer, PeerLost
from pdserve.ids import PROTOCOL_VERSION
from pdserve.v1 import worker_pb2 as pb


def hello_to(target_boot_id: bytes, me: Identity, transports: Sequence[str]) -> pb.PairHello:
    """The source's first words."""
    major, minor = me.nccl or (0, 0)
    return pb.PairHello(
        source_boot_id=me.boot_id, target_boot_id=target_boot_id, source_worker_id=me.worker_id,
        protocol_version=PROTOCOL_VERSION, layout_fingerprint=me.fingerprint, block_bytes=me.block_bytes,
        transports=transports, host_id=me.host_id, gpu_uuid=me.gpu_uuid, nccl_major=major, nccl_minor=minor,
    )  # fmt: skip


def check_hello(hello: pb.PairHello, me: Identity) -> None:
    """Raises IncompatiblePeer when the two can never talk, PeerLost when the source means an earlier start."""
    if hello.protocol_version != PROTOCOL_VERSION:
        raise IncompatiblePeer(f"protocol version {hello.protocol_version!r}, this worker speaks {PROTOCOL_VERSION}")
    if hello.target_boot_id != me.boot_id:
        raise PeerLost("hello for an earlier start of this worker")
    if hello.layout_fingerprint != me.fingerprint or hello.block_bytes != me.block_bytes:
        raise IncompatiblePeer(f"KV layout of {hello.source_worker_id} differs: another model, dtype or block size")
