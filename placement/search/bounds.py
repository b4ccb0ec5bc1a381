"""What each resource of a candidate can carry at most, in requests per second: the screen before any simulation.

Every bound is optimistic (means, full batches, no waiting): a candidate whose smallest bound is below what another
serves in simulation need not be simulated, and the smallest bound names what binds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.search.build import DoesNotFit, Serving, link_of
from placement.search.candidate import Candidate, Pool
from placement.simulator.cluster import StepTimes
from placement.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class LengthStats:
    """What the bounds need of a workload."""

    prompt_mean: float
    prompt_square_mean: float
    output_mean: float
    context_mean: float  # of a decoding sequence, over its steps
    prompt_at: float  # the quantile of prompts that the attainment asks to serve in time

    @classmethod
    def of(cls, workload: Workload, attainment: float) -> LengthStats:
        prompt, output = workload.prompt_tokens.astype(float), workload.output_tokens.astype(float)
        weight = np.maximum(output - 1, 1e-9)
        context = float(np.sum(weight * (prompt + output / 2)) / np.sum(weight))
        return cls(
            float(prompt.mean()), float((prompt**2).mean()), float(output.mean()), context,
            float(np.quantile(prompt, attainment, method="lower")),
        )  # fmt: skip


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
    batch: float = 0.0  # decodes in a step at the decode bound

    @property
    def rate(self) -> float:
        return min(self.by_resource.values())

    @property
    def binding(self) -> str:
        return min(self.by_resource, key=lambda name: self.by_resource[name])


def bounds_of(candidate: Candidate, serving: Serving, lengths: LengthStats, slo: Slo) -> Bounds:
    """The bounds of one candidate. Errors: DoesNotFit."""
    decode = candidate.decode
    lanes, blocks = decode.workers * decode.pp, serving.blocks(decode)
    times = serving.times(decode)
    if candidate.prefill is None:
        rate, batch, name = _colocated(candidate, times, blocks, serving, lengths, slo)
        alone = _alone_in_time(times, candidate.chunk_tokens, lengths, slo)
        return Bounds({name: lanes * rate, "ttft of one prompt": alone}, batch)
    serving.blocks(candidate.prefill)
    most = _decode_batch(times, blocks, serving, lengths, candidate.chunk_tokens)
    batch = _largest(lambda size: times.batch_s(0, 0.0, size, int(size * lengths.context_mean)) <= slo.tpot_s, most)
    decode_rate = float("inf")
    if lengths.output_mean > 1:
        step_s = times.batch_s(0, 0.0, max(batch, 1), int(max(batch, 1) * lengths.context_mean))
        decode_rate = lanes * batch / step_s / (lengths.output_mean - 1)
    prefill_times = serving.times(candidate.prefill)
    link_bytes = lengths.prompt_mean * serving.model.kv_bytes_per_token
    ports = min(pool.workers for pool in candidate.pools)
    return Bounds(
        {
            "prefill compute": _prefill_rate(candidate.prefill, prefill_times, candidate.chunk_tokens, lengths),
            "decode memory" if batch == most else "decode tpot": decode_rate,
            "link": ports * link_of(candidate, serving).bytes_per_s / link_bytes,
            "ttft of one prompt": _alone_in_time(prefill_times, candidate.chunk_tokens, lengths, slo),
        },
        batch,
    )


def _prefill_rate(pool: Pool, times: StepTimes, chunk: int, lengths: LengthStats) -> float:
    """Full chunks, one after another."""
    tokens_s = times.batch_s(chunk, 0.0, 0, 0) / chunk * lengths.prompt_mean
    pairs = lengths.prompt_square_mean / 2
    pairs_s = times.batch_s(chunk, pairs, 0, 0) - times.batch_s(chunk, 0.0, 0, 0)
    return pool.workers * pool.pp / (tokens_s + pairs_s)


def _alone_in_time(times: StepTimes, chunk: int, lengths: LengthStats, slo: Slo) -> float:
    """`inf` if the quantile prompt meets the TTFT on an idle worker, else 0."""
    tokens = int(lengths.prompt_at)
    seconds, start = 0.0, 0
    while start < tokens:
        end = min(tokens, start + chunk)
        seconds += times.batch_s(end - start, (end - start) * (start + end) / 2, 0, end)
        start = end
    return float("inf") if seconds <= slo.ttft_s else 0.0


def _decode_batch(times: StepTimes, blocks: int, serving: Serving, lengths: LengthStats, chunk: int) -> int:
    """Sequences that memory and the limits of a step allow."""
    return int(min(blocks * serving.block_size / max(lengths.context_mean, 1.0), serving.max_num_seqs, chunk))


def _colocated(
    candidate: Candidate, times: StepTimes, blocks: int, serving: Serving, lengths: LengthStats, slo: Slo
) -> tuple[float, float, str]:
    """Requests per second of one lane whose steps mix prompts and decodes in the workload's proportion."""
    most = _decode_batch(times, blocks, serving, lengths, candidate.chunk_tokens)
    best, best_batch, name = 0.0, 0.0, "colocated tpot"
    for batch in np.unique(np.geomspace(1, max(most, 1), 64).astype(int)).tolist():
        tokens = batch * lengths.prompt_mean / max(lengths.output_mean - 1, 1.0)
        if tokens + batch > candidate.chunk_tokens:
            break
        pairs = tokens * lengths.prompt_square_mean / lengths.prompt_mean / 2
        context = int(batch * lengths.context_mean + tokens)
        step_s = times.batch_s(max(1, int(tokens)), pairs, int(batch), context)
        if step_s <= slo.tpot_s and tokens / lengths.prompt_mean / step_s > best:
            best, best_batch = tokens / lengths.prompt_mean / step_s, float(batch)
    if best_batch >= most:
        name = "colocated memory"
    return best, best_batch, name


def _largest(fits: object, most: int) -> int:
    """The largest batch up to `most` that fits, 0 if none; `fits` is monotone."""
    assert callable(fits)
    if most < 1 or not fits(1):
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


__all__ = ["Bounds", "DoesNotFit", "LengthStats", "Slo", "bounds_of"]
