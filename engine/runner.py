"""The runner that computes: a model, a KV pool, an attention backend and the sampler behind `StepRunner`."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.attention import AttentionBackend, ReferenceAttention, TiledAttention
from engine.attention.plug import PagedSink, attending
from engine.batch import StepBatch, pack
from engine.kv_pool import KvPool
from engine.model import LoadedModel
from engine.row_tiles import ROW_TILE
from engine.sampler import sample
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest, SequenceStep, StepResult


class TorchRunner:
    """Computes steps of one model over one pool; owned by one thread, any thread."""

    def __init__(self, model: LoadedModel, pool: KvPool, backend: AttentionBackend | None = None) -> None:
        """`backend` defaults to the tiled one in deterministic mode, else the reference."""
        if pool.layout != model.kv_layout(pool.layout.block_size):
            raise ValueError("the pool was made for another model, dtype or block size")
        self.model = model
        self.pool = pool
        self._backend = backend or (TiledAttention(pool) if model.deterministic else ReferenceAttention(pool))
        self._row_multiple = ROW_TILE if model.deterministic else 1

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        """Compute one step and sample; one result per sequence, in order. See `StepRunner`."""
        if not steps:
            return []
        batch = pack(steps, self.pool.layout.block_size, self._row_multiple, self.model.device)
        logits = self.forward(batch)
        requests = [step.sample for step in steps if step.sample is not None]
        chosen = iter(sample(logits, requests))
        return [None if step.sample is None else next(chosen) for step in steps]

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Tensor:
        """Write the step's KV and give the logits of the rows that sample: [num_samples, V]."""
        self.pool.clear(batch.new_blocks)
        self._backend.begin(batch)
        with attending(PagedSink(self.pool, self._backend, batch)):
            out = self.model.module(
                input_ids=batch.input_ids,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=batch.sample_rows,
            )
        logits: Tensor = out.logits[0, : batch.num_samples]
        return logits

    def warm_up(self, max_num_batched_tokens: int = 512, max_num_seqs: int = 32) -> None:
        """Run the largest prefill and decode steps that fit, so that no request pays for first calls.

        Uses the pool's blocks and clears them: called once, before the pool holds anything.
        """
        size = self.pool.layout.block_size
        room = min(max_num_batched_tokens, self.model.max_model_len, self.pool.num_blocks * size)
        prompt = [1 % self.model.vocab_size] * room
        params = SampleRequest(SamplingParams(max_tokens=1), prompt, len(prompt))
        whole = SequenceStep(SequenceKey("warm-up"), prompt, 0, list(range(-(-room // size))), params)
        self.execute([whole])
        sequences = min(max_num_seqs, self.pool.num_blocks)
        self.execute([SequenceStep(SequenceKey(f"warm-up-{i}"), prompt[:1], 0, [i], params) for i in range(sequences)])
        self.pool.clear(torch.arange(self.pool.num_blocks, device=self.pool.device))
