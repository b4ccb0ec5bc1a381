"""What one run showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.load.processes import Ran
from bench.load.result import Outcome, Result
from bench.load.statistics import Interval, Spread, wilson
from placement.workload import Workload

LATE_LIMIT_S = 0.02  # one request in a hundred that left later than that is a warning
BUSY_LIMIT = 0.85  # of a core: a generator process that has so much is the bottleneck
LATE_BUSY_LIMIT = 0.5  # or so much on average, when requests left late; with less something else held it up


@dataclass(frozen=True, slots=True)
class Objective:
    """Latency wanted of every request; None: no target."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def longest_s(self, output_tokens: int) -> float | None:
        """A request that takes longer has missed one of the two."""
        if self.ttft_s is None or self.tpot_s is None:
            return None
        return self.ttft_s + self.tpot_s * max(0, output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Summary:
    """One run at one rate. Requests that were interrupted count nowhere but in `outcomes`."""

    offered_rate: float  # requests per second that were sent
    offered_tokens_per_s: float  # prompt and output
    elapsed_s: float  # time 0 to the last end
    num_requests: int  # that count
    outcomes: dict[str, int]
    errors: dict[str, int]  # first words of what servers said -> how often
    ttft_s: Spread
    tpot_s: Spread
    itl_s: Spread  # gaps between messages
    e2e_s: Spread
    request_throughput: float  # answered whole, per second
    output_throughput: float  # tokens per second
    prompt_throughput: float
    cached_share: float  # of the prompts' tokens, found in the server's prefix cache
    met_ttft: int
    met_tpot: int
    met: int  # both
    attainment: float  # met of those that count; failed, rejected and cut ones are misses
    attainment_limits: Interval  # 95 %, Wilson; requests beside one another are not independent, so it is a little bold
    good_throughput: float  # requests per second that met both
    blame: dict[str, int]  # why requests missed, one each: the server's own verdict, or what it does not know
    late_p99_s: float  # of the generator
    late_max_s: float
    capped_p99_s: float  # waited for a place under --max-concurrency; in the latencies
    generator_cores: tuple[float, ...]
    interrupted: bool

    @property
    def generator_is_slow(self) -> bool:
        limit = LATE_BUSY_LIMIT if self.late_p99_s > LATE_LIMIT_S else BUSY_LIMIT
        return any(cores > limit for cores in self.generator_cores)

    @property
    def machine_was_busy(self) -> bool:
        """Requests left late though the generator had little to do."""
        return self.late_p99_s > LATE_LIMIT_S and not self.generator_is_slow


def summarize(
    results: Sequence[Result],
    workload: Workload,
    ran: Ran,
    objective: Objective,
    skip_s: float = 0.0,
    server_judged: bool = True,
) -> Summary:
    """Of the requests that were to be sent from skip_s on; `server_judged`: by the same objective."""
    everyone = [one for one in results if one.intended_s >= skip_s]
    counted = [one for one in everyone if one.outcome is not Outcome.INTERRUPTED]
    whole = [one for one in counted if one.outcome is Outcome.OK]
    began = [one for one in counted if one.ttft_s is not None]
    elapsed_s = max((one.end_s for one in counted), default=ran.elapsed_s) - skip_s
    met_ttft = sum(one.meets(objective.ttft_s, None) for one in counted)
    missed = [one for one in counted if not one.meets(objective.ttft_s, objective.tpot_s)]
    met = len(counted) - len(missed)
    sent = [one.intended_s for one in everyone]
    span_s = max(sent) - min(sent) if len(sent) > 1 else 0.0
    prompt_tokens = sum(one.prompt_tokens for one in began)
    offered = sum(one.prompt_tokens + one.asked_tokens for one in everyone)
    return Summary(
        offered_rate=(len(sent) - 1) / span_s if span_s > 0 else 0.0,
        offered_tokens_per_s=offered / span_s if span_s > 0 else 0.0,
        elapsed_s=elapsed_s,
        num_requests=len(counted),
        outcomes=_counts(one.outcome.value for one in everyone),
        errors=_counts(one.error[:160] for one in counted if one.error),
        ttft_s=Spread.of([one.ttft_s for one in began if one.ttft_s is not None]),
        tpot_s=Spread.of([one.tpot_s for one in whole if one.num_tokens > 1]),
        itl_s=Spread.of(np.concatenate([np.zeros(0), *(np.asarray(one.gaps_s, np.float64) for one in began)])),
        e2e_s=Spread.of([one.e2e_s for one in whole]),
        request_throughput=len(whole) / elapsed_s if elapsed_s > 0 else 0.0,
        output_throughput=sum(one.num_tokens for one in began) / elapsed_s if elapsed_s > 0 else 0.0,
        prompt_throughput=prompt_tokens / elapsed_s if elapsed_s > 0 else 0.0,
        cached_share=sum(one.cached_tokens for one in began) / prompt_tokens if prompt_tokens else 0.0,
        met_ttft=met_ttft,
        met_tpot=sum(one.meets(None, objective.tpot_s) for one in counted),
        met=met,
        attainment=met / len(counted) if counted else 0.0,
        attainment_limits=wilson(met, len(counted)),
        good_throughput=met / elapsed_s if elapsed_s > 0 else 0.0,
        blame=_counts(_blame(one, server_judged) for one in missed),
        late_p99_s=Spread.of([one.late_s for one in everyone]).p99 if everyone else 0.0,
        late_max_s=max((one.late_s for one in everyone), default=0.0),
        capped_p99_s=Spread.of([one.capped_s for one in everyone]).p99 if everyone else 0.0,
        generator_cores=ran.cores,
        interrupted=ran.interrupted,
    )


def _blame(miss: Result, server_judged: bool) -> str:
    """The server's word; without one, how the request ended, or that only our clock saw the miss."""
    counts = server_judged or miss.outcome in (Outcome.FAILED, Outcome.REJECTED)  # for these it needs no objective
    if counts and miss.blame is not None and miss.blame != "none":
        return miss.blame
    if miss.outcome is not Outcome.OK:
        return str(miss.outcome.value)
    return "client side" if server_judged and miss.blame is not None else "not told"


def _counts(words: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(word for word in words if word is not None).most_common())
