"""The runner for GPUs behind `StepRunner`: decode steps by CUDA graph, others eagerly, sampling on the device.

    launch(steps)     host: seats, arrays, one copy        device: copy, pass, sampling, tokens on their way back
    collect(...)      waits until all of that launch is done, and for nothing that was launched after it

`execute` is one after the other. The engine (engine/ahead.py) launches step n + 1 before it collects step n, and gives
PENDING where a sequence's last token is still on the device (docs/adr/0030). NOT YET RUN ON HARDWARE.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.gpu.attention import TritonAttention
from engine.gpu.decode_graphs import Chosen, DecodeGraphs
from engine.gpu.forward import ModelForward, probe
from engine.gpu.plan import AttentionPlan, plan_step
from engine.gpu.queue import Mark, queue_for
from engine.gpu.sampler import plain_choice
from engine.gpu.sampling import PreparedSampling, StepSampler, read_results
from engine.gpu.seats import Seating, Seats
from engine.gpu.splits import Int64s
from engine.gpu.staging import Arriving, Fetcher, Stager
from engine.kv_pool import KvPool
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest, SequenceStep, StepResult

MAX_IN_FLIGHT = 2  # launches that were not collected
EVERYTHING = SamplingParams(
    max_tokens=1, temperature=1.0, top_p=0.9, top_k=10, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.1,
    frequency_penalty=0.1, logit_bias=((0, 1.0),), min_tokens=1, stop_token_ids=(0,), logprobs=5,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on the device."""

    end: Mark  # behind its last kernel: its blocks may be announced, read by others and freed
    arriving: Arriving | None  # rows of sampling.py `choose`; None where nothing was sampled
    samples: tuple[bool, ...]  # per sequence of the step
    reads: tuple[int | None, ...]  # per sample, see PreparedSampling


class GpuRunner:
    """Computes steps of one model over one pool; owned by one thread, any thread."""

    def __init__(
        self, module: Any, pool: KvPool, max_model_len: int, max_num_seqs: int = 256, max_num_batched_tokens: int = 8192
    ) -> None:
        """`module`: a transformers model on the pool's device that was told to use our attention, with its rotary
        positions fixed and its dry run passed (engine/model.py); the limits are those that the scheduler keeps."""
        self.pool = pool
        device, size = pool.device, pool.layout.block_size
        self._queue = queue = queue_for(device)
        self._num_in_flight = 0
        self._max_num_seqs = max_num_seqs
        self._ends = [queue.mark() for _ in range(MAX_IN_FLIGHT)]  # the oldest is that of a launch that was collected
        with queue.active():
            probed = probe(module, device)
            self._attention = TritonAttention(pool, probed.num_heads, max_model_len)
            self._forward = ModelForward(module, self._attention, device)
            self._seats = Seats(2 * max_num_seqs, -(-max_model_len // size), size, device)
            self._sampler = StepSampler(probed.vocab, 2 * max_num_seqs, device)
            room = DecodeGraphs.capacity(max_num_seqs, self._attention)
            self._inputs = Stager(queue, max(room, 4 * max_num_batched_tokens))
            self._fixed_inputs = Stager(queue, room)
            self._extras = Stager(queue, 16 * max_num_seqs)
            self._fetcher = Fetcher(queue, max_num_seqs)
            self._graphs = DecodeGraphs(queue, self._fixed_inputs, self._forward, self._seats, max_num_seqs)

    def capture(self) -> bool:
        """Make the graphs of decode steps; False: this model's run eagerly, and the log says why."""
        with self._queue.active():
            return self._graphs.capture()

    def warm_up(self, max_num_batched_tokens: int) -> bool:
        """Capture, and run the largest prefill and every kind of sampling once, so that no request pays for first calls
        and the device's memory has been what it will be at most.

        Uses the pool's first blocks, the same for all its sequences, and clears them: called once, before the pool
        holds anything. False: no graphs.
        """
        captured = self.capture()
        size = self.pool.layout.block_size
        length = min(max_num_batched_tokens, self._seats.tables.shape[1] * size, self.pool.num_blocks * size)
        blocks = list(range(-(-length // size)))

        def run(name: str, lengths: Seq[int], params: SamplingParams) -> None:
            requests = [SampleRequest(params, [0] * count, count) for count in lengths]
            keys = [SequenceKey(f"{name}-{index}") for index in range(len(lengths))]
            self.execute([SequenceStep(k, r.token_ids, 0, blocks, r) for k, r in zip(keys, requests, strict=True)])

        whole = min(max_num_batched_tokens // length, self._max_num_seqs)
        run("warm-up", [length] * whole, SamplingParams(max_tokens=1))
        for name in ("sampled", "sampled again"):  # counters of penalties are kept for twice the sequences of a step
            run(name, [1] * self._max_num_seqs, EVERYTHING)
        with self._queue.active():
            self.pool.clear(torch.arange(len(blocks), device=self.pool.device))
        return captured

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        """See `StepRunner`."""
        return self.collect(self.launch(steps)) if steps else []

    @torch.inference_mode()
    def launch(self, steps: Seq[SequenceStep]) -> Launched:
        """Give a step to the device; returns when it is given. Reads `steps` only now.

        Steps run in the order of their launches. At most MAX_IN_FLIGHT may be waiting for collect(). When it raises,
        nothing of the step is left on the device: its blocks may be freed at once.
        """
        assert self._num_in_flight < MAX_IN_FLIGHT, "launches that were never collected"
        with self._queue.active():
            try:
                launched = self._give(steps)
            except Exception:
                given = self._queue.mark()
                given.set()
                given.wait()
                raise
        self._num_in_flight += 1
        return launched

    def collect(self, launched: Launched) -> list[StepResult]:
        """Wait until a step is done, also one that sampled nothing: only then may its blocks be announced or freed.

        One result per sequence, in order. Called once per launch, in their order.
        """
        self._num_in_flight -= 1
        launched.end.wait()
        if launched.arriving is None:
            return [None for _ in launched.samples]
        results = iter(read_results(launched.arriving.wait(), launched.reads))
        return [next(results) if sampled else None for sampled in launched.samples]

    # ---- parts of a launch ----

    def _give(self, steps: Seq[SequenceStep]) -> Launched:
        seating = self._seats.seat(steps)
        samples = tuple(step.sample is not None for step in steps)
        sampling = [(step.key, step.sample) for step in steps if step.sample is not None]
        prepared = self._sampler.prepare([key for key, _ in sampling], [request for _, request in sampling])
        rows = np.flatnonzero(samples)
        extras = self._send_extras(seating, rows, prepared)
        chosen = self._compute(steps, seating, samples)
        arriving = None
        if len(rows):
            arriving = self._fetcher.fetch(self._sample(chosen, prepared, extras).contiguous())
        end = self._ends.pop(0)
        self._ends.append(end)
        end.set()
        return Launched(end, arriving, samples, prepared.reads)

    def _send_extras(self, seating: Seating, rows: Int64s, prepared: PreparedSampling) -> list[Tensor]:
        """What few decode steps need, in one copy: new blocks, sampling parameters. Blocks are entered here."""
        parts = [seating.entries, seating.blocks, seating.first_blocks, seating.seats[rows], *prepared.parts]
        if prepared.batch is None and not len(seating.entries) and not len(seating.first_blocks):
            return []
        entries, blocks, first_blocks, *others = self._extras.stage(parts)
        if len(entries):
            self._seats.tables.view(-1).index_copy_(0, entries, blocks.int())
        if len(first_blocks):
            self.pool.clear(first_blocks)
        return others

    def _compute(self, steps: Seq[SequenceStep], seating: Seating, samples: Seq[bool]) -> Chosen:
        """The pass; one row of logits per sequence that samples."""
        starts = np.array([step.start for step in steps], dtype=np.int64)
        lengths = np.array([len(step.token_ids) for step in steps], dtype=np.int64)
        ids = np.array(list(chain.from_iterable([step.token_ids for step in steps])), dtype=np.int64)
        if len(ids) == len(steps) and all(samples):
            chosen = self._graphs.try_run(ids, starts, seating.seats)
            if chosen is not None:
                return Chosen(chosen.logits[: len(steps)], chosen.plain[: len(steps)])
        return self._eager(ids, starts, lengths, seating.seats, np.flatnonzero(samples))

    def _eager(self, ids: Int64s, starts: Int64s, lengths: Int64s, seats: Int64s, sampling: Int64s) -> Chosen:
        attention = self._attention
        host = plan_step(starts, lengths, attention.splits, attention.tile_rows)
        last_rows = np.cumsum(lengths) - 1
        positions = np.arange(len(ids)) + np.repeat(starts - last_rows - 1 + lengths, lengths)
        parts = [ids, positions, np.repeat(seats, lengths), host.decode_rows, host.item_starts, host.items]
        parts += [last_rows[sampling], seats[sampling], *host.tiles.values()]
        staged = self._inputs.stage(parts)
        input_ids, at, row_seats, decode_rows, item_starts, items, sample_rows, sample_seats = staged[:8]
        plan = AttentionPlan(
            num_rows=len(ids), tables=self._seats.tables, positions=at, seats=row_seats, decode_rows=decode_rows,
            item_starts=item_starts, items=items, max_items=len(host.items),
            tiles=dict(zip(host.tiles, staged[8:], strict=True)), covers_all_rows=True,
        )  # fmt: skip
        logits = self._forward(plan, self._seats.resolve(input_ids, row_seats), sample_rows)
        plain = plain_choice(logits)
        self._seats.remember(sample_seats, plain)
        return Chosen(logits, plain)

    def _sample(self, chosen: Chosen, prepared: PreparedSampling, extras: Seq[Tensor]) -> Tensor:
        if prepared.batch is None:
            return chosen.plain[:, None]
        sample_seats, *parts = extras
        out = self._sampler.choose(chosen.logits, chosen.plain, prepared, parts)
        self._seats.remember(sample_seats, out[:, 0])
        return out
