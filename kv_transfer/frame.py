"""The 128-byte descriptor of a frame: whose blocks they are, where they belong, what their bytes hash to.

    offset  0 magic  4 version  6 kind  8 flags  12 count  16 pair nonce  32 epoch  40 transfer id  48 index  52 tag
           56 source block  64 source generation  72 length  80 digest  88 digest of every block's identity
           96 reserved  120 digest of the first 120 bytes

Index, tag, source block and generation are those of the frame's first block. Little endian. Nothing of a block counts
before its descriptor was checked against what the receiver expects.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from pdserve.errors import TransferCorrupt

DESCRIPTOR_BYTES = 128
FRAME_VERSION = 2
_MAGIC = b"PDKV"
_BODY = struct.Struct("<4sHHII16sQQIIQQQQQ24x")
_CHECK = struct.Struct("<Q")
assert _BODY.size + _CHECK.size == DESCRIPTOR_BYTES


class FrameKind(IntEnum):
    """What a descriptor says."""

    HELLO = 1  # the first on a link: both ends hold the same pair
    BLOCKS = 2  # a frame: some blocks of a transfer
    ACK = 3  # that frame arrived and was verified


FLAG_DIGEST = 1
"""The digest is that of the payload; without it the field means nothing."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One frame's identity and digest."""

    kind: FrameKind
    nonce: bytes  # 16 bytes of the pair
    epoch: int  # of the pair
    transfer_id: int = 0
    count: int = 0  # blocks in the frame
    index: int = 0  # of the first block within the transfer
    tag: int = 0  # pair-unique
    source_block: int = 0
    source_generation: int = 0
    length: int = 0  # bytes of the payload
    digest: int = 0  # xxh3_64 of the payload
    blocks: int = 0  # xxh3_64 of index, source block and generation of each block
    flags: int = 0

    def pack(self) -> bytes:
        """128 bytes."""
        body = _BODY.pack(
            _MAGIC, FRAME_VERSION, self.kind, self.flags, self.count, self.nonce, self.epoch, self.transfer_id,
            self.index, self.tag, self.source_block, self.source_generation, self.length, self.digest, self.blocks,
        )  # fmt: skip
        return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))


def unpack(frame: bytes) -> Descriptor:
    """The descriptor in these 128 bytes; TransferCorrupt when they are not one."""
    if len(frame) != DESCRIPTOR_BYTES:
        raise TransferCorrupt(f"descriptor has {len(frame)} bytes, expected {DESCRIPTOR_BYTES}")
    body = frame[: _BODY.size]
    (check,) = _CHECK.unpack_from(frame, _BODY.size)
    (
        magic, version, kind, flags, count, nonce, epoch, transfer_id, index, tag,
        source_block, source_generation, length, digest, blocks,
    ) = _BODY.unpack(body)  # fmt: skip
    if magic != _MAGIC or version != FRAME_VERSION:
        raise TransferCorrupt(f"not a descriptor of version {FRAME_VERSION}")
    if check != xxhash.xxh3_64_intdigest(body):
        raise TransferCorrupt("descriptor's own digest is wrong")
    try:
        known = FrameKind(kind)
    except ValueError:
        raise TransferCorrupt(f"unknown kind of descriptor {kind}") from None
    return Descriptor(
        kind=known, nonce=nonce, epoch=epoch, transfer_id=transfer_id, count=count, index=index, tag=tag,
        source_block=source_block, source_generation=source_generation, length=length, digest=digest, blocks=blocks,
        flags=flags,
    )  # fmt: skip


def expect(actual: Descriptor, expected: Descriptor) -> None:
    """TransferCorrupt, naming the first field that differs, unless all but digest and flags are as expected."""
    for name in (
        "nonce", "epoch", "kind", "transfer_id", "count", "index", "tag", "source_block", "source_generation", "length",
        "blocks",
    ):  # fmt: skip
        if getattr(actual, name) != getattr(expected, name):
            shown = "" if name == "nonce" else f" {getattr(actual, name)}, expected {getattr(expected, name)}"
            raise TransferCorrupt(f"descriptor of another {name.replace('_', ' ')}{shown}")
