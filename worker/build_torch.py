"""The real engine of a worker: a checkpoint, its pool, the runner; loaded and warm."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.grammar.compiler import GrammarCompiler
from engine.kv_pool import KvPool
from engine.model import load_model
from engine.runner import TorchRunner
from pdserve.clock import Clock
from pdserve.config import WorkerStart
from pdserve.kv_memory import KvMemory
from worker.assembly import BuiltEngine, assemble, pool_blocks


def build_torch(start: WorkerStart, clock: Clock) -> BuiltEngine:
    """Load, size the pool, warm up. Raises what loading raises; ConfigError when the pool is too small."""
    config = start.config
    assert config.threads is not None and config.kv_bytes is not None and config.max_num_seqs is not None
    assert config.max_num_batched_tokens is not None
    torch.set_num_threads(config.threads)
    model = load_model(
        start.model,
        config.dtype,
        start.device,
        config.max_model_len,
        kernels=config.kernels,
        num_threads=config.threads,
    )
    layout = model.kv_layout(config.block_size)
    num_blocks = pool_blocks(layout, config.kv_bytes, model.max_model_len)
    memory = KvMemory(num_blocks, layout.block_bytes, shared=start.role == "prefill")  # decode workers map prefill's
    memory.make_resident()
    runner = TorchRunner(model, KvPool(layout, num_blocks, memory))
    runner.warm_up(config.max_num_batched_tokens, config.max_num_seqs)
    built = assemble(config, memory, layout, runner, model.max_model_len, model.vocab_size, clock)
    return replace(built, grammars=GrammarCompiler(start.model, model.vocab_size))
