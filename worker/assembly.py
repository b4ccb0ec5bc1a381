"""What an engine is made of, whatever computes its steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from engine.ahead import AheadCore
from engine.core import EngineCore
from engine.sizing import num_kv_blocks
from kv_transfer.transports.gpu_choice import GpuPool
from pdserve.clock import Clock
from pdserve.config import WorkerConfig
from pdserve.kv_layout import KvLayout
from pdserve.kv_memory import KvMemory
from pdserve.settings import ConfigError
from scheduling.batching import Scheduler, SchedulerConfig
from scheduling.blocks import BlockPool
from scheduling.step import AheadRunner, StepRunner
from worker.constraints import Compiler

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine that is loaded and warm."""

    core: EngineCore
    memory: KvMemory
    layout: KvLayout
    max_model_len: int
    vocab_size: int
    gpu: GpuPool | None = None  # where the blocks lie if not in `memory`, which then holds their generations only
    grammars: Compiler | None = None  # None: it takes no constraints


def assemble(
    config: WorkerConfig, memory: KvMemory, layout: KvLayout, runner: StepRunner, max_model_len: int, vocab_size: int,
    clock: Clock, gpu: GpuPool | None = None,
) -> BuiltEngine:  # fmt: skip
    """Scheduler, blocks and runner over one pool."""
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
    core = (
        AheadCore(scheduler, runner, clock) if isinstance(runner, AheadRunner) else EngineCore(scheduler, runner, clock)
    )
    return BuiltEngine(core, memory, layout, max_model_len, vocab_size, gpu)


def pool_blocks(layout: KvLayout, kv_bytes: int, max_model_len: int) -> int:
    """How many blocks `kv_bytes` holds; ConfigError, naming the flags, when that is less than one context."""
    try:
        return num_kv_blocks(layout, kv_bytes, max_model_len)
    except ValueError as error:
        raise ConfigError([f"kv_bytes: {error}; raise --kv-bytes or lower --max-model-len"]) from None
