"""What a run showed and what was predicted of it, side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from bench.load.result import Outcome, Result
from bench.load.statistics import Spread
from placement.simulator.results import RequestColumns
from placement.workload import Workload

LATENCIES = ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "tpot_p90_s")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request must keep, and how many must."""

    ttft_s: float
    tpot_s: float
    attainment: float = 0.9

    def scaled(self, by: float) -> Targets:
        """Laxer or tighter, both together (DistServe, section 6.2: SLO scale)."""
        return replace(self, ttft_s=by * self.ttft_s, tpot_s=by * self.tpot_s)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run, measured or simulated."""

    ttft_p50_s: float
    ttft_p90_s: float
    tpot_p50_s: float
    tpot_p90_s: float
    attainment: float


def figures_of(ttft_s: Floats, tpot_s: Floats, targets: Targets) -> Figures:
    """TTFT and TPOT of every request, nan for one that was not served: it misses, and is in no percentile."""
    served = ~np.isnan(ttft_s)
    ttft, tpot = Spread.of(ttft_s[served]), Spread.of(tpot_s[served])
    met = served & (ttft_s <= targets.ttft_s) & (tpot_s <= targets.tpot_s)
    return Figures(ttft.p50, ttft.p90, tpot.p50, tpot.p90, float(np.mean(met)))


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Requests of one run in the order of sending, as columns; times are nan where one was not served.

    What the cluster was really asked, at the instants of sending: what held the generator up is not its doing.
    """

    sent_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints  # asked for
    counts: npt.NDArray[np.bool_]  # those due at the beginning of a run do not
    ttft_s: Floats  # from the sending
    tpot_s: Floats

    @classmethod
    def of(cls, results: Sequence[Result], skip_s: float) -> Sent:
        """Those due from skip_s on count. Errors: ValueError without any request."""
        if not results:
            raise ValueError("no request was due within a run: raise --duration or --rates")
        order = sorted(results, key=lambda one: one.intended_s + one.late_s)
        columns = zip(*(_row(one, skip_s) for one in order), strict=True)
        return cls(*(np.array(column) for column in columns))

    @property
    def workload(self) -> Workload:
        return Workload.of(self.prompt_tokens, self.output_tokens, self.sent_s)


def _row(one: Result, skip_s: float) -> tuple[float, int, int, bool, float, float]:
    sent_s = one.intended_s + one.late_s
    ttft_s = one.first_s - sent_s if one.first_s is not None and one.outcome is Outcome.OK else math.nan
    return sent_s, one.prompt_tokens, one.asked_tokens, one.intended_s >= skip_s, ttft_s, one.tpot_s


def measured(sent: Sent, targets: Targets) -> Figures:
    """Of the requests that count."""
    return figures_of(sent.ttft_s[sent.counts], sent.tpot_s[sent.counts], targets)


def predicted(sent: Sent, columns: RequestColumns, targets: Targets) -> Figures:
    """Of the same requests in a simulation of them, in that order."""
    return figures_of(columns.ttft_s[sent.counts], columns.tpot_s[sent.counts], targets)


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians over rounds."""

    predicted: Figures
    measured: Figures

    @classmethod
    def of(cls, rounds: Sequence[tuple[Figures, Figures]]) -> Pair:
        return cls(_median([one for one, _ in rounds]), _median([other for _, other in rounds]))

    @property
    def attainment_points(self) -> float:
        """Predicted - measured, percentage points."""
        return 100.0 * (self.predicted.attainment - self.measured.attainment)

    def error(self, name: str) -> float:
        """Predicted / measured - 1."""
        return float(getattr(self.predicted, name) / getattr(self.measured, name) - 1.0)


def _median(all_figures: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(getattr(one, field.name) for one in all_figures) for field in fields(Figures)))
