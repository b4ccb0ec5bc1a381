"""The mock engine of a worker: patterned KV and predicted step times from a profile."""

from __future__ import annotations

import json
from pathlib import Path

from engine.mock import KV_BYTES_PER_TOKEN, MockRunner, mock_layout
from pdserve.clock import Clock
from pdserve.config import WorkerStart
from pdserve.kv_memory import KvMemory
from scheduling.latency import load_profile
from worker.assembly import BuiltEngine, assemble, pool_blocks

MOCK_VOCAB_SIZE = 2048
MOCK_MAX_MODEL_LEN = 8192


def build_mock(start: WorkerStart, clock: Clock) -> BuiltEngine:
    """Size the pool and read the profile; a model directory, if given, tells vocabulary and context only."""
    config = start.config
    assert config.mock is not None and config.kv_bytes is not None
    latency = load_profile(config.mock)
    model = json.loads((Path(start.model) / "config.json").read_text()) if start.model else {}
    max_model_len = config.max_model_len or int(model.get("max_position_embeddings", MOCK_MAX_MODEL_LEN))
    vocab_size = int(model.get("vocab_size", MOCK_VOCAB_SIZE))
    layout = mock_layout(f"mock:{vocab_size}", config.block_size, KV_BYTES_PER_TOKEN)
    memory = KvMemory(pool_blocks(layout, config.kv_bytes, max_model_len), layout.block_bytes)
    runner = MockRunner(layout, memory, latency, vocab_size, max_model_len)
    return assemble(config, memory, layout, runner, max_model_len, vocab_size, clock)
