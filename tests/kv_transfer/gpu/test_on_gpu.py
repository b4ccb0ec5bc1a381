"""What only a GPU can show of the parts that have stand-ins elsewhere: streams, pinned memory, handles, NCCL itself.

    python -m pytest -m gpu tests/kv_transfer/gpu

NOT YET RUN ON A GPU. What needs two processes is in test_gpu_processes.py, the contract in test_contract.py.
"""

from __future__ import annotations

import random
import sys
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from kv_transfer.transports.cuda_ipc_handle import CudaPoolSharing, can_reach, device_of, gpu_uuid, unpack_card
from kv_transfer.transports.gpu_choice import nccl_environment
from kv_transfer.transports.gpu_copies import (
    MAX_RUNS,
    CudaCopyQueue,
    as_words,
    block_sums,
    copy_blocks,
    host_pool,
    pin,
)
from kv_transfer.transports.gpu_staging import StagingMemory
from kv_transfer.transports.nccl_communicator import _PairStore, nccl_version

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICE = torch.device("cuda", 0)
BLOCK_BYTES = 2 << 20


def pools(count: int, num_blocks: int = 64) -> list[torch.Tensor]:
    made = [torch.randint(256, (num_blocks, BLOCK_BYTES), dtype=torch.uint8, device=DEVICE) for _ in range(count)]
    torch.cuda.synchronize()
    return made


@pytest.mark.parametrize("count", [1, MAX_RUNS, 40])
def test_copies_on_a_side_stream_are_over_at_their_mark(count: int) -> None:
    """Runs and gathers, while the default stream is busy for much longer: the copy neither waits for it nor ends it."""
    source, target = pools(2)
    expected = target.clone()
    sources, targets = (np.array(random.Random(n).sample(range(64), count)) for n in (1, 2))
    expected[torch.from_numpy(targets).cuda()] = source[torch.from_numpy(sources).cuda()]
    torch.cuda.synchronize()
    queue = CudaCopyQueue(DEVICE)
    words = [as_words(pool, BLOCK_BYTES) for pool in (source, target)]
    queue.give(lambda: copy_blocks(words[0], sources, words[1], targets))  # kernels are loaded
    queue.mark().wait()
    target.zero_()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy = torch.cuda.Event()
    busy.record()
    queue.give(lambda: copy_blocks(words[0], sources, words[1], targets))
    queue.mark().wait()
    assert not busy.query()
    torch.cuda.synchronize()
    named = torch.from_numpy(targets).cuda()
    assert torch.equal(target[named], expected[named])


def test_staging_memory_is_pinned_for_as_long_as_it_is_wanted() -> None:
    """Down and up again through it, and the same bytes."""
    (pool,) = pools(1)
    memory = StagingMemory(8, BLOCK_BYTES)
    unpin = pin(memory, DEVICE)
    slots, words = as_words(host_pool(memory), BLOCK_BYTES), as_words(pool, BLOCK_BYTES)
    assert slots.is_pinned()
    queue, first, second = CudaCopyQueue(DEVICE), np.array([3, 4, 9, 60]), np.array([10, 11, 12, 13])
    queue.give(lambda: copy_blocks(words, first, slots, np.arange(4)))
    queue.mark().wait()
    queue.give(lambda: copy_blocks(slots, np.arange(4), words, second))
    queue.mark().wait()
    assert torch.equal(pool[torch.from_numpy(first).cuda()], pool[torch.from_numpy(second).cuda()])
    unpin()


def test_sums_are_those_of_the_cpu() -> None:
    """Integer sums wrap around alike on both."""
    (pool,) = pools(1)
    assert (block_sums(as_words(pool, BLOCK_BYTES)) == block_sums(as_words(pool.cpu(), BLOCK_BYTES))).all()


def test_a_pool_has_a_card() -> None:
    """Also one that begins inside of a larger allocation, as the allocator gives them; and this GPU is found again."""
    some, pool = pools(2, 3)
    card = unpack_card(CudaPoolSharing().export(pool[1:]))
    assert (card.num_blocks, card.block_bytes, card.pool_offset) == (2, BLOCK_BYTES, BLOCK_BYTES)
    assert device_of(card.gpu_uuid.decode()) == DEVICE and can_reach(DEVICE, gpu_uuid(DEVICE))
    assert not can_reach(DEVICE, "GPU-of-somebody-else") and some is not pool


def test_a_rank_of_one_sends_to_itself_over_our_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group that stands alone, its id carried by a rendezvous, a coalesced group of a send and a receive."""
    for name, value in nccl_environment(shares_gpu=False).items():
        monkeypatch.setenv(name, value)
    mine, _ = sys.modules["kv_contract_conftest"].MemoryRendezvous.couple()
    nccl: Any = dist.ProcessGroupNCCL  # type: ignore[attr-defined]
    options = nccl.Options()
    options._timeout = timedelta(seconds=60)
    store = _PairStore(mine, 5.0)
    group = nccl(store, 0, 1, options)
    group.eager_connect_single_device(DEVICE)
    sent, arrived = torch.arange(1 << 20, device=DEVICE), torch.zeros(1 << 20, dtype=torch.int64, device=DEVICE)
    group._start_coalescing()
    group.send([sent], 0, 0)
    group.recv([arrived], 0, 0)
    group._end_coalescing().wait()
    torch.cuda.synchronize()
    assert torch.equal(sent, arrived)
    group.abort()
    assert nccl_version() is not None
