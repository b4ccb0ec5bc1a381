"""The engine of a worker with a GPU: a checkpoint, a pool in what its share of the card leaves, the runner; warm.

    load ─> run the largest steps over a small pool ─> what is left of the share ─> the pool ─> runner, graphs, warm

NOT YET RUN ON A GPU; with a card that is none, and interpreted kernels, on the CPU by tests/worker/gpu.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.gpu.runner import GpuRunner
from engine.kv_pool import KvPool
from engine.model import LoadedModel, load_model
from kv_transfer.transports.gpu_choice import GpuPool
from pdserve.clock import Clock
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.kv_layout import KvLayout
from pdserve.kv_memory import KvMemory
from worker.assembly import BuiltEngine, assemble, pool_blocks
from worker.gpu_card import Card, CudaCard
from worker.gpu_memory import CardShare, Need, check_free, kv_budget, out_of_memory, shown

log = logging.getLogger(__name__)


def build_gpu(start: WorkerStart, clock: Clock) -> BuiltEngine:
    """Called once. Raises what loading raises; StartError, ConfigError when the card or the pool is too small."""
    return build_on(CudaCard(torch.device(start.device)), start, clock)


def build_on(card: Card, start: WorkerStart, clock: Clock) -> BuiltEngine:
    """The same on a card that is there."""
    config = start.config
    assert config.threads is not None
    torch.set_num_threads(config.threads)
    share = CardShare(start.device, card.total_bytes, config.gpu_memory_utilization)
    with _told(share, card, "loading the weights"):
        model = load_model(start.model, config.dtype, card.device, config.max_model_len, kernels="torch")
    layout = model.kv_layout(config.block_size)
    kv_bytes = config.kv_bytes
    if kv_bytes is None:
        with _told(share, card, "the largest step"):
            taken = _measure(model, layout, config, card)
        kv_bytes = kv_budget(share, taken, _need(layout, model.max_model_len))
        log.info(
            "%s: weights and the largest step take %s, KV gets %s", start.device, shown(taken), shown(kv_bytes)
        )  # fmt: skip
    num_blocks = pool_blocks(layout, kv_bytes, model.max_model_len)
    check_free(share, card.free_bytes(), num_blocks * layout.block_bytes)
    with _told(share, card, "the KV pool and the largest step"):
        pool = KvPool(layout, num_blocks, device=card.device)
        runner = _warm_runner(model, pool, config)
    # The blocks' part of the memory file is a hole: the scheduler writes the generations, peers map and read them.
    memory = KvMemory(num_blocks, layout.block_bytes)
    gpu = GpuPool(pool.data, card.gpu_uuid, card.nccl, card.reaches)
    return assemble(config, memory, layout, runner, model.max_model_len, model.vocab_size, clock, gpu)


def _warm_runner(model: LoadedModel, pool: KvPool, config: WorkerConfig) -> GpuRunner:
    assert config.max_num_seqs is not None and config.max_num_batched_tokens is not None
    runner = GpuRunner(
        model.kernels.module, pool, model.max_model_len, config.max_num_seqs, config.max_num_batched_tokens
    )
    runner.warm_up(config.max_num_batched_tokens)
    return runner


def _measure(model: LoadedModel, layout: KvLayout, config: WorkerConfig, card: Card) -> int:
    """What weights, graphs and the largest steps take without KV; all but the weights is given back."""
    assert config.max_num_batched_tokens is not None
    longest = min(model.max_model_len, config.max_num_batched_tokens)
    pool = KvPool(layout, -(-longest // layout.block_size), device=card.device)
    _warm_runner(model, pool, config)
    taken = card.most_taken_bytes() - pool.data.nbytes
    del pool
    card.give_back()
    return taken


def _need(layout: KvLayout, max_model_len: int) -> Need:
    blocks = -(-max_model_len // layout.block_size)
    return Need(max_model_len, blocks * (layout.block_bytes + 8))  # as engine/sizing.py counts


@contextmanager
def _told(share: CardShare, card: Card, doing: str) -> Iterator[None]:
    """What torch says of too little memory in one line that names flags."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise out_of_memory(share, doing, card.free_bytes()) from None
