"""What each resource of a candidate can carry at most, in requests per second: the screen before any simulation.

Every bound is optimistic (means, full batches, no waiting): a candidate whose smallest bound is below what another
serves in simulation need not be simulated, and the smallest bound names what binds. Where the TPOT target limits the
batch, the share of requests that may miss it may come in batches without limit, so the bound is divided by the share
that may not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from placement.search.build import Serving, link_of
from placement.search.candidate import Candidate, Pool
from placement.search.lengths import LengthStats
from placement.simulator.cluster import StepTimes
from placement.workload.workload import Workload

_SHORTEST_S = 1e-9  # a fit may say 0 where it was not measured


@dataclass(frozen=True, slots=True)
class Slo:
    """Both must be met by this share of the requests."""

    ttft_s: float
    tpot_s: float
    attainment: float = 0.9

    def __post_init__(self) -> None:
        if not (self.ttft_s > 0 and self.tpot_s > 0 and 0 < self.attainment < 1):
            raise ValueError(
                f"SLO of ttft {self.ttft_s} s, tpot {self.tpot_s} s, attainment {self.attainment}: times above 0, "
                "attainment between 0 and 1"
            )


@dataclass(frozen=True, slots=True)
class Bounds:
    """Requests per second that each resource allows; `inf` where it does not matter, 0 where nothing is possible."""

    by_resource: dict[str, float]

    @property
    def rate(self) -> float:
        return min(self.by_resource.values())

    @property
    def binding(self) -> str:
        return min(self.by_resource, key=lambda name: self.by_resource[name])


@dataclass(frozen=True, slots=True)
class _Lane:
    """Requests per second of one lane of a worker, and what that is bound by."""

    rate: float
    name: str
    alone: float  # `inf` if a prompt on an idle worker is in time, else 0


class Screen:
    """The bounds of candidates for one workload; what equal lanes can do is computed once."""

    def __init__(self, serving: Serving, slo: Slo, sample: Workload) -> None:
        self._serving = serving
        self._slo = slo
        self._sample = sample
        self._lengths: dict[int, LengthStats] = {}
        self._lanes: dict[tuple[str, Pool, int, int], _Lane] = {}

    def __call__(self, candidate: Candidate) -> Bounds:
        """Errors: DoesNotFit."""
        decode, prefill = candidate.decode, candidate.prefill
        if prefill is None:
            lane = self._lane("colocated", decode, candidate)
            return Bounds({lane.name: _lanes(candidate, decode) * lane.rate, "ttft of one prompt": lane.alone})
        ahead, after = self._lane("prefill", prefill, candidate), self._lane("decode", decode, candidate)
        sent_bytes = self.lengths(candidate.local_prefill_tokens).sent_mean * self._serving.model.kv_bytes_per_token
        ports = min(_lanes(candidate, pool) for pool in candidate.pools)
        return Bounds(
            {
                ahead.name: _lanes(candidate, prefill) * ahead.rate,
                after.name: _lanes(candidate, decode) * after.rate,
                "link": ports * link_of(candidate, self._serving).bytes_per_s / sent_bytes if sent_bytes else math.inf,
                "ttft of one prompt": ahead.alone,
            }
        )

    def lengths(self, local_tokens: int = 0) -> LengthStats:
        found = self._lengths.get(local_tokens)
        if found is None:
            found = self._lengths[local_tokens] = LengthStats.of(
                self._sample,
                self._slo.attainment,
                prefix_caching=self._serving.prefix_caching,
                local_tokens=local_tokens,
            )
        return found

    def _lane(self, phase: str, pool: Pool, candidate: Candidate) -> _Lane:
        chunk, local = candidate.chunk_tokens, candidate.local_prefill_tokens
        key = (phase, replace(pool, workers=1), chunk, local)
        found = self._lanes.get(key)
        if found is None:
            make = {"prefill": _prefill, "decode": _decode, "colocated": _colocated}[phase]
            times = self._serving.times(pool, colocated=phase == "colocated")
            blocks = self._serving.blocks(pool)
            most = _batch(blocks, self._serving, self.lengths(local), chunk)
            found = self._lanes[key] = make(times, most, chunk, self.lengths(local), self._slo)
        return found


def _lanes(candidate: Candidate, pool: Pool) -> int:
    return candidate.replicas * pool.workers * pool.pp


def _batch(blocks: int, serving: Serving, lengths: LengthStats, chunk: int) -> int:
    """Sequences that memory and the limits of a step allow."""
    return int(min(blocks * serving.block_size / max(lengths.context_mean, 1.0), serving.max_num_seqs, chunk))


def _prefill(times: StepTimes, most: int, chunk: int, lengths: LengthStats, slo: Slo) -> _Lane:
    """Full chunks, one after another."""
    return _Lane(_prefill_rate(times, chunk, lengths), "prefill compute", _alone(times, chunk, lengths, slo))


def _prefill_rate(times: StepTimes, chunk: int, lengths: LengthStats) -> float:
    full_s = times.batch_s(chunk, 0.0, 0, 0)
    pairs_s = times.batch_s(chunk, lengths.pairs_mean, 0, 0) - full_s
    seconds = full_s / chunk * lengths.computed_mean + max(0.0, pairs_s)
    return 1.0 / seconds if seconds > 0.0 else math.inf


def _alone(times: StepTimes, chunk: int, lengths: LengthStats, slo: Slo) -> float:
    """`inf` if the quantile prompt meets the TTFT on an idle worker, else 0."""
    tokens = int(lengths.computed_at)
    seconds, start = 0.0, 0
    while start < tokens:
        end = min(tokens, start + chunk)
        seconds += times.batch_s(end - start, (end - start) * (start + end) / 2, 0, end)
        start = end
    return math.inf if seconds <= slo.ttft_s else 0.0


def _decode(times: StepTimes, most: int, chunk: int, lengths: LengthStats, slo: Slo) -> _Lane:
    steps = lengths.output_mean - 1
    if steps <= 0.0:
        return _Lane(math.inf, "decode tpot", math.inf)

    def step_s(batch: int) -> float:
        return max(_SHORTEST_S, times.batch_s(0, 0.0, batch, int(batch * lengths.context_mean)))

    full = most / step_s(most) / steps
    within = [batch / step_s(batch) / steps for batch in range(1, most + 1) if step_s(batch) <= slo.tpot_s]
    limited = max(within, default=0.0) / slo.attainment
    return _Lane(min(full, limited), "decode memory" if full <= limited else "decode tpot", math.inf)


def _colocated(times: StepTimes, most: int, chunk: int, lengths: LengthStats, slo: Slo) -> _Lane:
    """Steps that mix prompts and decodes in the workload's proportion, at every batch that fits."""
    alone, steps = _alone(times, chunk, lengths, slo), lengths.output_mean - 1
    compute = _prefill_rate(times, chunk, lengths)
    full = within = 0.0
    room = True  # for a whole batch and its share of prompts in the tokens of a step
    for batch in range(1, most + 1):
        tokens = batch * lengths.computed_mean / steps if steps > 0.0 else math.inf
        room = tokens + batch <= chunk
        if not room:
            break
        pairs = batch / steps * lengths.pairs_mean
        context = int(batch * lengths.context_mean + tokens)
        step_s = max(_SHORTEST_S, times.batch_s(max(1, int(tokens)), pairs, batch, context))
        full = max(full, batch / steps / step_s)
        if step_s <= slo.tpot_s:
            within = max(within, batch / steps / step_s)
    most_rate, name = (full, "colocated memory") if room else (compute, "colocated compute")
    limited = most_rate if within == full else within / slo.attainment
    return _Lane(min(most_rate, limited), name if most_rate <= limited else "colocated tpot", alone)
