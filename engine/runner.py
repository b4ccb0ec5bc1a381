"""The runner that computes: a model, a KV pool, an attention backend and the sampler behind `StepRunner`."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.attention import AttentionBackend
from engine.batch import StepBatch, StepPacker
from engine.grammar import MaskThread
from engine.kv_pool import KvPool
from engine.model import LoadedModel
from engine.sampler import sample
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest, SequenceStep, StepResult

log = logging.getLogger(__name__)


class TorchRunner:
    """Computes steps of one model over one pool; owned by one thread, any thread."""

    def __init__(self, model: LoadedModel, pool: KvPool, backend: AttentionBackend | None = None) -> None:
        """`backend` is an attention to use in place of the model's; for one that its own module computes."""
        if pool.layout != model.kv_layout(pool.layout.block_size):
            raise ValueError("the pool was made for another model, dtype or block size")
        self.model = model
        self.pool = pool
        self.computes = model.kernels.forward_over(pool, backend)
        self._packer = StepPacker(pool.layout.block_size, model.kernels.row_multiple, model.device)
        self._masks = MaskThread()

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        """Compute one step and sample; one result per sequence, in order. See `StepRunner`."""
        if not steps:
            return []
        assert not self.model.deterministic or torch.get_num_threads() == 1, "somebody raised the number of threads"
        requests = [step.sample for step in steps if step.sample is not None]
        self._masks.begin(requests)
        logits = self.forward(self._packer.pack(steps))
        chosen = iter(sample(logits, requests, self._masks.take()))
        return [None if step.sample is None else next(chosen) for step in steps]

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Tensor:
        """Write the step's KV and give the logits of the rows that sample: [num_samples, V], valid until the next."""
        self.pool.clear(batch.new_blocks)
        return self.computes(batch)

    def warm_up(self, max_num_batched_tokens: int = 512, max_num_seqs: int = 32) -> None:
        """Run the largest prefill and decode steps that fit, so that no request pays for first calls.

        Uses the pool's blocks and clears them: called once, before the pool holds anything. In deterministic mode it
        also compares a prompt's logits, whole and in pieces beside others, and logs a warning where a bit differs:
        a product that no row tile covers.
        """
        size = self.pool.layout.block_size
        room = min(max_num_batched_tokens, self.model.max_model_len, self.pool.num_blocks * size)
        prompt = [index % self.model.vocab_size for index in range(room)]
        params = SampleRequest(SamplingParams(max_tokens=1), prompt, len(prompt))
        whole = SequenceStep(SequenceKey("warm-up"), prompt, 0, list(range(-(-room // size))), params)
        self.execute([whole])
        sequences = min(max_num_seqs, self.pool.num_blocks)
        used = max(len(whole.block_ids), sequences)
        self.execute([SequenceStep(SequenceKey(f"warm-up-{i}"), prompt[:1], 0, [i], params) for i in range(sequences)])
        if self.model.deterministic and not self._is_invariant(prompt[:40]):
            log.warning("the numbers of %s depend on what else is in the step", self.model.config.model_type)
        self.pool.clear(torch.arange(used, device=self.pool.device))  # the others were never touched: no memory yet

    def _is_invariant(self, prompt: list[int]) -> bool:
        """Whether the last token's logits of a prompt have the same bits when it is computed in other company."""
        size = self.pool.layout.block_size
        count = -(-len(prompt) // size)
        if len(prompt) < 3 or self.pool.num_blocks < 2 * count:
            return True  # no room for company
        params = SampleRequest(SamplingParams(max_tokens=1), prompt, len(prompt))
        own, others = list(range(count)), list(range(count, 2 * count))
        whole = SequenceStep(SequenceKey("whole"), prompt, 0, own, params)
        middle = len(prompt) // 3
        first = SequenceStep(SequenceKey("first"), prompt[:middle], 0, own, None)
        second = SequenceStep(SequenceKey("second"), prompt[middle:], middle, own, params)
        company = SequenceStep(SequenceKey("company"), prompt[::-1], 0, others, None)

        def logits(*steps: SequenceStep) -> Tensor:
            return self.forward(self._packer.pack(steps)).clone()

        alone = logits(whole)
        logits(company, first)
        return torch.equal(alone, logits(company, second))
