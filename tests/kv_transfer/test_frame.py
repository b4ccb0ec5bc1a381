"""The descriptor: what is packed comes out, anything else is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kv_transfer.frame import DESCRIPTOR_BYTES, Descriptor, FrameKind, expect, unpack
from pdserve.errors import TransferCorrupt

FULL = Descriptor(
    kind=FrameKind.BLOCKS, nonce=bytes(range(16)), epoch=2**63 + 1, transfer_id=2**64 - 1, count=2**32 - 2,
    index=2**32 - 1, tag=2**31 - 18, source_block=5, source_generation=2**64 - 2, length=2**40, digest=2**64 - 3,
    blocks=2**64 - 4, flags=1,
)  # fmt: skip


def test_a_descriptor_survives_the_wire() -> None:
    """All fields, at the ends of their ranges, in 128 bytes."""
    frame = FULL.pack()
    assert len(frame) == DESCRIPTOR_BYTES == 128
    assert unpack(frame) == FULL


def test_every_single_bit_counts() -> None:
    """No flipped bit passes, reserved bytes included."""
    frame = FULL.pack()
    for bit in range(8 * DESCRIPTOR_BYTES):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TransferCorrupt):
            unpack(bytes(flipped))


@pytest.mark.parametrize("size", [0, 127, 129])
def test_another_size_is_refused(size: int) -> None:
    """Only 128 bytes are a descriptor."""
    with pytest.raises(TransferCorrupt, match=str(size)):
        unpack(bytes(size))


@pytest.mark.parametrize(
    "field",
    ["kind", "nonce", "epoch", "transfer_id", "count", "index", "tag", "source_block", "source_generation", "length",
     "blocks"],
)  # fmt: skip
def test_a_descriptor_of_something_else_is_refused_by_name(field: str) -> None:
    """Each field of identity is compared; the nonce, a secret, is not shown."""
    wrong: object = FrameKind.ACK if field == "kind" else bytes(16) if field == "nonce" else getattr(FULL, field) - 1
    other = replace(FULL, **{field: wrong})  # type: ignore[arg-type]
    with pytest.raises(TransferCorrupt, match=field.replace("_", " ")) as refused:
        expect(other, FULL)
    assert field != "nonce" or str(bytes(16)) not in str(refused.value)


def test_digest_and_flags_are_not_identity() -> None:
    """The receiver knows neither before the descriptor comes."""
    expect(replace(FULL, digest=0, flags=0), FULL)
