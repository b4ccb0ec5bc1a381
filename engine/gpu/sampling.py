"""One step's sampling from requests to results: what goes to the device, what comes back, what it means."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.gpu.penalties import History, PenaltyCounters
from engine.gpu.sampler import INFINITE, NOT_A_NUMBER, choose
from engine.gpu.sampling_batch import SamplingBatch, sampling_batch, unpack
from engine.gpu.splits import Int64s
from pdserve.errors import BadSampling, ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken, TokenLogprobs
from scheduling.step import SampleRequest

HISTORY_PARTS = 4


@dataclass(frozen=True, slots=True)
class PreparedSampling:
    """A step's sampling before its logits are there."""

    history: History
    batch: SamplingBatch | None  # None: all rows are plain
    reads: tuple[int | None, ...]  # per row: best tokens wanted with log-probabilities; None: no log-probabilities

    @property
    def parts(self) -> list[Int64s]:
        """What the device needs, in the order that `StepSampler.choose` takes."""
        return [*self.history.parts, *([] if self.batch is None else self.batch.parts)]


class StepSampler:
    """Owned by one thread; its steps are prepared and chosen in turn."""

    def __init__(self, vocab: int, max_rows: int, device: torch.device) -> None:
        """`vocab`: columns of the logits; `max_rows`: at least twice the sequences of a step."""
        self._vocab = vocab
        self.counters = PenaltyCounters(vocab, max_rows, device)

    def prepare(self, keys: Seq[SequenceKey], requests: Seq[SampleRequest]) -> PreparedSampling:
        """Called once per step, in the order of the steps; one key and request per row of logits."""
        rows, history = self.counters.find(keys, requests)
        batch = sampling_batch(requests, rows, self._vocab)
        wanted = tuple(request.sampling.logprobs for request in requests)
        return PreparedSampling(history, batch, tuple(None if n is None else min(n, self._vocab) for n in wanted))

    def choose(self, logits: Tensor, plain: Tensor, prepared: PreparedSampling, parts: Seq[Tensor]) -> Tensor:
        """[n, width] int64, see sampler.py `choose`: column 0 is the token or why there is none.

        Shapes:  logits [n, V]; plain [n], from plain_choice; parts: prepared.parts on the device.
        """
        if prepared.batch is None:
            return plain[:, None]
        self.counters.load(*parts[:HISTORY_PARTS])
        return choose(logits, plain, unpack(parts[HISTORY_PARTS:]), prepared.batch.flags, self.counters)


def read_results(rows: Int64s, reads: Seq[int | None]) -> list[SampledToken | ServingError]:
    """What `StepSampler.choose` gave, on the host, as the engine knows it."""
    return [_result(row, count) for row, count in zip(rows, reads, strict=True)]


def _result(row: Int64s, count: int | None) -> SampledToken | ServingError:
    token_id = int(row[0])
    if token_id in (NOT_A_NUMBER, INFINITE):
        highest = "nan" if token_id == NOT_A_NUMBER else "inf"
        return ServingError(f"the model's logits are not finite (highest is {highest})")
    if token_id < 0:
        return BadSampling("no token is possible: every one is ruled out by the sampling parameters")
    if count is None:
        return SampledToken(token_id)
    width = (len(row) - 2) // 2
    logprobs = row[2 + width :].view(np.float64)[:count].tolist()
    top = tuple(zip(row[2 : 2 + count].tolist(), logprobs, strict=True))
    return SampledToken(token_id, TokenLogprobs(token_id, float(row[1:2].view(np.float64)[0]), top))
