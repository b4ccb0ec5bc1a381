"""From a worker's start line to an engine: the real one or the mock, its KV memory and layout."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.core import EngineCore
from engine.kv_pool import KvPool
from engine.mock import MockRunner, mock_layout
from engine.model import load_model
from engine.runner import TorchRunner
from engine.sizing import num_kv_blocks
from pdserve.clock import Clock
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.kv_layout import KvLayout
from pdserve.kv_memory import KvMemory
from scheduling.batching import Scheduler, SchedulerConfig
from scheduling.blocks import BlockPool
from scheduling.latency import load_profile
from scheduling.step import StepRunner

log = logging.getLogger(__name__)

MOCK_KV_BYTES_PER_TOKEN = 64
MOCK_VOCAB_SIZE = 2048
MOCK_MAX_MODEL_LEN = 8192


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine that is loaded and warm."""

    core: EngineCore
    memory: KvMemory
    layout: KvLayout
    max_model_len: int
    vocab_size: int


def build_engine(start: WorkerStart, clock: Clock) -> BuiltEngine:
    """Load (or mock) the model and make its pool. Raises what loading raises; ValueError for a small pool."""
    return _build_mock(start, clock) if start.config.mock is not None else _build_torch(start, clock)


def _assemble(
    config: WorkerConfig, memory: KvMemory, layout: KvLayout, runner: StepRunner, max_model_len: int, vocab_size: int,
    clock: Clock,
) -> BuiltEngine:  # fmt: skip
    assert config.max_num_seqs is not None and config.max_num_batched_tokens is not None
    blocks = BlockPool(
        memory.num_blocks,
        layout.block_size,
        prefix_caching=config.enable_prefix_caching,
        generations=memory.generations,
    )
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
        ),
        blocks,
        clock,
    )  # fmt: skip
    log.info(
        "KV pool: %d blocks of %d tokens (%.0f MiB), up to %.1f contexts of %d tokens",
        memory.num_blocks, layout.block_size, memory.num_blocks * memory.block_bytes / 2**20,
        memory.num_blocks * layout.block_size / max_model_len, max_model_len,
    )  # fmt: skip
    return BuiltEngine(EngineCore(scheduler, runner, clock), memory, layout, max_model_len, vocab_size)


def _build_mock(start: WorkerStart, clock: Clock) -> BuiltEngine:
    config = start.config
    assert config.mock is not None and config.kv_bytes is not None
    latency = load_profile(config.mock)
    model = json.loads((Path(start.model) / "config.json").read_text()) if start.model else {}
    max_model_len = config.max_model_len or int(model.get("max_position_embeddings", MOCK_MAX_MODEL_LEN))
    vocab_size = int(model.get("vocab_size", MOCK_VOCAB_SIZE))
    layout = mock_layout(f"mock:{vocab_size}", config.block_size, MOCK_KV_BYTES_PER_TOKEN)
    memory = KvMemory(num_kv_blocks(layout, config.kv_bytes, max_model_len), layout.block_bytes)
    runner = MockRunner(layout, memory, latency, vocab_size, max_model_len)
    return _assemble(config, memory, layout, runner, max_model_len, vocab_size, clock)


def _build_torch(start: WorkerStart, clock: Clock) -> BuiltEngine:
    config = start.config
    assert config.threads is not None and config.kv_bytes is not None and config.max_num_seqs is not None
    assert config.max_num_batched_tokens is not None
    torch.set_num_threads(config.threads)
    model = load_model(start.model, config.dtype, start.device, config.max_model_len)
    layout = model.kv_layout(config.block_size)
    num_blocks = num_kv_blocks(layout, config.kv_bytes, model.max_model_len)
    memory = KvMemory(num_blocks, layout.block_bytes)
    runner = TorchRunner(model, KvPool(layout, num_blocks, memory))
    runner.warm_up(config.max_num_batched_tokens, config.max_num_seqs)
    return _assemble(config, memory, layout, runner, model.max_model_len, model.vocab_size, clock)
