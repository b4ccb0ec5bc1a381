"""Which transport two workers with GPUs use; the card that describes a pool."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from kv_transfer.transports.cuda_ipc_handle import PoolCard, unpack_card
from kv_transfer.transports.gpu_choice import GpuPlace, choose, nccl_environment
from pdserve.errors import IncompatiblePeer

NEW, OLD = (2, 30), (2, 28)
HERE = GpuPlace("host", "GPU-a", OLD)
NEIGHBOUR = GpuPlace("host", "GPU-b", OLD)
FAR = GpuPlace("elsewhere", "GPU-c", OLD)
HOST_MEMORY = GpuPlace("host")


@pytest.mark.parametrize(
    ("mine", "theirs", "peer_access", "expected"),
    [
        (HERE, HERE, False, ("cuda_ipc", "staged")),  # one GPU; this NCCL refuses a second rank on it
        (replace(HERE, nccl=NEW), replace(HERE, nccl=NEW), False, ("cuda_ipc", "nccl", "staged")),
        (replace(HERE, nccl=NEW), HERE, False, ("cuda_ipc", "staged")),  # both must take it
        (HERE, NEIGHBOUR, True, ("cuda_ipc", "nccl", "staged")),
        (HERE, NEIGHBOUR, False, ("nccl", "staged")),
        (HERE, FAR, False, ("nccl", "staged")),
        (HERE, FAR, True, ("nccl", "staged")),  # reach means nothing between hosts
        (HERE, replace(FAR, nccl=None), False, ("staged",)),  # a torch without NCCL
        (HERE, replace(HERE, host_id="elsewhere"), True, ("staged",)),  # one UUID on two hosts: never mapped
        (HERE, HOST_MEMORY, True, ("staged",)),
        (HOST_MEMORY, FAR, False, ("staged",)),
        (HOST_MEMORY, HOST_MEMORY, False, ()),
    ],
)
def test_auto_takes_the_best_that_both_can(
    mine: GpuPlace, theirs: GpuPlace, peer_access: bool, expected: tuple[str, ...]
) -> None:
    """The table; it is the same from the other side, and a name of the table narrows it to itself or to nothing."""
    assert choose("auto", mine, theirs, peer_access=peer_access) == expected
    assert choose("auto", theirs, mine, peer_access=peer_access) == expected
    for name in ("cuda_ipc", "nccl", "staged"):
        assert choose(name, mine, theirs, peer_access=peer_access) == ((name,) if name in expected else ())


def test_unknown_names_are_refused() -> None:
    """As everywhere in the configuration."""
    with pytest.raises(ValueError, match="nixl"):
        choose("nixl", HERE, HERE, peer_access=False)


def test_the_environment_keeps_torch_from_ending_the_process() -> None:
    """And allows two ranks on one GPU only where they are wanted."""
    alone, shared = nccl_environment(shares_gpu=False), nccl_environment(shares_gpu=True)
    assert alone["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == alone["TORCH_NCCL_ENABLE_MONITORING"] == "0"
    assert shared == {**alone, "NCCL_MULTI_RANK_GPU_ENABLE": "1"}


CARD = PoolCard(10, 64, 1000, 1 << 33, 128, 3, True, b"GPU-a", bytes(range(66)), b"/torch_1_2", bytes(64))


def test_a_card_survives_the_wire() -> None:
    """Every field, offsets beyond 32 bits, empty texts."""
    for card in (CARD, replace(CARD, event_handle=b"", event_required=False)):
        assert unpack_card(card.pack()) == card


def test_what_is_no_card_is_refused() -> None:
    """Cut anywhere, with something behind it, of another form, too long, or of a pool beyond its storage."""
    packed = CARD.pack()
    bad = [packed[:length] for length in range(len(packed))]
    bad += [packed + b"\0", b"PDCX" + packed[4:], bytes(3000), struct.pack("<H", 65535) * 100]
    bad.append(replace(CARD, pool_offset=361).pack())
    for one in bad:
        with pytest.raises(IncompatiblePeer):
            unpack_card(one)
