"""A spec, loaded: gives as many requests, at any rate, from any seed, as are asked for; the file is read once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from placement.workload import transform
from placement.workload.arrivals import Arrivals, Constant, Gamma, Piecewise, Poisson
from placement.workload.conversations import TokenCounter, estimate_tokens
from placement.workload.errors import WorkloadError
from placement.workload.files import ReadOptions, read_workload
from placement.workload.generate import ARRIVALS, LENGTHS, dice_of, generate
from placement.workload.lengths import LengthPairs, Pairs
from placement.workload.presets import PRESETS, Preset
from placement.workload.sharing import Sharing, SystemPrompts
from placement.workload.spec import WorkloadSpec
from placement.workload.workload import Workload

MAX_REQUESTS = 50_000_000  # of one workload: more do not fit in the memory of a small machine
MORE = 1.2  # of a rejection: drawn beyond what should be enough
BOOTSTRAP_RUN = 50  # consecutive requests drawn together where arrivals are the trace's


class WorkloadSource:
    """Made once per spec; `build` may be called any number of times and depends on its arguments alone."""

    def __init__(
        self, spec: WorkloadSpec, count_tokens: TokenCounter | None = None, recorded: Workload | None = None
    ) -> None:
        """Reads the file, if it is one; `recorded`: what would be read, where somebody has it. Raises WorkloadError."""
        self.spec = spec
        self.recorded = recorded
        if recorded is None and spec.path is not None:
            self.recorded = _read(spec, count_tokens)

    @property
    def own_rate(self) -> float | None:
        """Mean rate that the spec or its source says; None: whoever builds has to say."""
        spec = self.spec
        if spec.rates:
            return sum(rate * seconds for rate, seconds in spec.rates) / sum(seconds for _, seconds in spec.rates)
        if spec.rate is not None:
            return spec.rate
        if self.recorded is not None:
            return self.recorded.rate if self.recorded.timed and self.recorded.rate > 0 else None
        return PRESETS[spec.source].rate if spec.source else None

    def build(
        self,
        *,
        rate: float | None = None,
        num_requests: int | None = None,
        duration_s: float | None = None,
        seed: int | None = None,
    ) -> Workload:
        """Requests at a mean rate (scaled, whatever the arrivals), so many of them or as come in duration_s.

        What is None is the spec's; of num_requests and duration_s the tighter holds. A trace that has fewer requests
        is repeated. With neither, a trace is given whole; anything else raises WorkloadError.
        """
        spec = self.spec
        rate = rate or self.own_rate
        num, duration_s = num_requests or spec.n, duration_s or spec.duration
        seed = seed if seed is not None else spec.seed or 0
        if rate is None:
            raise WorkloadError(f"workload {self.name}: has no times of its own, so it needs a rate: rate= or a flag")
        if (asked := num or (rate * duration_s if duration_s else 0)) > MAX_REQUESTS:
            raise WorkloadError(f"workload {self.name}: has {asked:.3g} requests; at most {MAX_REQUESTS:,} are made")
        if duration_s is None:
            if num is None and self.recorded is None:
                raise WorkloadError(
                    f"workload {self.name}: needs a number of requests or a duration: n=, duration= or flags"
                )
            return self._timed(num or len(self.recorded or ()), rate, seed)
        most = num or MAX_REQUESTS
        tries = min(most, int(rate * duration_s * MORE) + 64)
        workload = self._timed(tries, rate, seed)
        while workload.arrival_s[-1] < duration_s and tries < most:
            tries = min(most, 2 * tries)
            workload = self._timed(tries, rate, seed)
        workload = transform.within_time(workload, 0.0, duration_s)
        if not len(workload):
            raise WorkloadError(f"workload {self.name}: no request comes within {duration_s:g} s at {rate:g} a second")
        return workload

    @property
    def name(self) -> str:
        """For people."""
        return self.spec.source or "input=...,output=..."

    def _timed(self, num: int, rate: float, seed: int) -> Workload:
        """num requests with arrivals from 0 on."""
        arrivals = self._arrivals(rate)
        if self.recorded is None:
            workload = self._made(num, seed)
        elif self.spec.resample:
            run = 1 if arrivals is not None else BOOTSTRAP_RUN
            workload = transform.bootstrap(self.recorded, num, dice_of(seed, LENGTHS), run)
        else:
            workload = transform.repeated(self.recorded, num)
        if arrivals is not None:
            return transform.with_arrivals(workload, arrivals, dice_of(seed, ARRIVALS))
        assert self.recorded is not None  # a preset always has arrivals
        return transform.sped_up(workload, rate / self.recorded.rate)

    def _arrivals(self, rate: float) -> Arrivals | None:
        """None: as recorded."""
        spec = self.spec
        own = self.own_rate
        if spec.rates and own is not None:
            pieces = tuple((one * rate / own, seconds) for one, seconds in spec.rates)
            return Piecewise(pieces, 1.0 if spec.cv is None else spec.cv)
        if spec.arrivals == "constant":
            return Constant(rate)
        if spec.arrivals == "gamma" and spec.cv is not None:
            return Gamma(rate, spec.cv)
        if spec.arrivals != "poisson":
            if spec.source in PRESETS:
                return PRESETS[spec.source].arrivals(rate)
            if self.recorded is not None and self.recorded.timed and self.recorded.rate > 0:
                return None
        return Poisson(rate)

    def _made(self, num: int, seed: int) -> Workload:
        """Drawn from distributions; what is too long is drawn again."""
        lengths, sharing = self._distributions()
        tries = num
        while True:
            drawn = _limited(generate(lengths, None, tries, seed, sharing), self.spec)
            if len(drawn) >= num:
                return transform.head(drawn, num)
            if len(drawn) * 100 < tries:
                raise WorkloadError(
                    f"workload {self.name}: fewer than one request in 100 keeps {_limits_in_words(self.spec)}"
                )
            tries = int(tries * max(MORE, MORE * num / len(drawn)))

    def _distributions(self) -> tuple[LengthPairs, Sharing | None]:
        spec = self.spec
        if spec.source:
            preset: Preset = PRESETS[spec.source]
            return preset.lengths, preset.sharing
        assert spec.input is not None and spec.output is not None
        sharing = SystemPrompts(spec.prefix) if spec.prefix else None
        return Pairs(spec.input, spec.output, spec.correlation), sharing


def _read(spec: WorkloadSpec, count_tokens: TokenCounter | None) -> Workload:
    assert spec.path is not None
    options = ReadOptions(
        block_tokens=spec.block,
        count_tokens=count_tokens or estimate_tokens(spec.chars_per_token),
        every_turn=spec.turns == "all",
        limit=spec.head,
        sample=spec.sample,
        seed=spec.seed or 0,
    )
    workload = read_workload(spec.path, options, spec.format)
    if spec.start or spec.end < math.inf:
        if not workload.timed:
            raise WorkloadError(f"{spec.path}: its requests have no times, which start= and end= need")
        last_s = float(workload.arrival_s[-1])
        workload = transform.within_time(workload, spec.start, spec.end)
        if not len(workload):
            raise WorkloadError(
                f"{spec.path}: no request comes between start={spec.start:g} and end={spec.end:g} s; the last one "
                f"comes at {last_s:.4g} s"
            )
    num = len(workload)
    workload = _limited(workload, spec)
    if not len(workload):
        raise WorkloadError(f"{spec.path}: none of its {num:,} requests keeps {_limits_in_words(spec)}")
    return replace(workload, arrival_s=workload.arrival_s - workload.arrival_s[0]) if workload.timed else workload


def _limited(workload: Workload, spec: WorkloadSpec) -> Workload:
    if spec.clip and spec.max_input is not None and spec.max_output is not None:
        workload = transform.clipped(workload, spec.max_input, spec.max_output)
    limits = (spec.max_input, spec.max_output, spec.max_total)
    return workload if np.all([one is None for one in limits]) else transform.within_lengths(workload, *limits)


def _limits_in_words(spec: WorkloadSpec) -> str:
    given = {"max-input": spec.max_input, "max-output": spec.max_output, "max-total": spec.max_total}
    return " and ".join(f"{name}={limit}" for name, limit in given.items() if limit is not None)


def load_workload(
    spec: WorkloadSpec,
    *,
    rate: float | None = None,
    num_requests: int | None = None,
    duration_s: float | None = None,
    seed: int | None = None,
) -> Workload:
    """The spec's requests, for who needs them once."""
    return WorkloadSource(spec).build(rate=rate, num_requests=num_requests, duration_s=duration_s, seed=seed)
