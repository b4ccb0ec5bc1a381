"""Every series of the cluster in Prometheus text: the router's own, and the workers' as their status brings them.

One registry per process. Labels are bounded: SLO classes and tenants that are not configured count as `default`.
A dead worker's series disappear; what it had counted in series that name no worker stays, so that counters only grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pdserve.slo import Blame, Slo
from router.record import Outcome, RequestRecord
from router.token_gaps import GapHistogram
from router.worker_series import PREFIX, WorkerCollector, WorkerSnapshot, WorkerSource

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TRANSFER_SECONDS = (0.0005, *_SECONDS)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_SIZES = tuple(float(2**n) for n in range(18))
_MOST_VERDICTS = 1024  # series that show 0 before anything happened
_PHASES = ("queue", "prefill", "transfer", "decode_wait", "decode")


class RouterMetrics:
    """What the router counts, and the collector of what workers count. A `RecordSink`."""

    def __init__(
        self, workers: WorkerSource, slos: Sequence[Slo] = (Slo(),), tenants: Iterable[str] = ("default",)
    ) -> None:
        """Every threshold of the configured classes is a bucket's edge: attainment can be read from the histogram."""
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._slo_classes = frozenset(slo.slo_class for slo in slos)
        self._tenants = frozenset(tenants)
        first, later = _with_edges(_SECONDS, (s.ttft_s for s in slos)), _with_edges(_GAPS, (s.tpot_s for s in slos))
        self._ttft = self._histogram("time_to_first_token_seconds", "Received until the first token left.", first)
        self._tpot = self._histogram("time_per_output_token_seconds", "(last - first token) / (n - 1).", later)
        self._gap = GapHistogram(PREFIX + "inter_token_latency_seconds", "Between two tokens.", later)
        self.registry.register(self._gap)
        self._whole = self._histogram("e2e_request_latency_seconds", "Received until the end, if served.", _SECONDS)
        self._prompt_sizes = self._histogram("request_prompt_tokens", "Prompt tokens of served requests.", _SIZES)
        self._output_sizes = self._histogram("request_generation_tokens", "Tokens given by served requests.", _SIZES)
        self._phase = self._histogram("request_phase_seconds", "Where a request's time went.", _SECONDS, ["phase"])
        self._transfer = self._histogram("kv_transfer_seconds", "First byte expected until commit.", _TRANSFER_SECONDS)
        self._lag = self._histogram("event_loop_lag_seconds", "How late the router's loop ran a timer.", _SECONDS)
        self._requests = self._counter("requests", "Requests by how they ended.", ["outcome"])
        self._slo = self._counter(
            "slo_requests", "Requests by SLO verdict.", ["verdict", "blame", "slo_class", "tenant"]
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of accepted prompts.")
        self._tokens = self._counter("generation_tokens", "Tokens generated and sent on.")
        self._hits = self._counter("prefix_cache_hit_tokens", "Prompt tokens whose KV was in a prefix cache.")
        self._stayed = self._counter(
            "prompts_computed_on_decode", "Served requests whose decode worker computed the prompt too."
        )
        self._stale = self._counter(
            "router_stale_messages", "Messages of workers that came too late or twice.", ["kind"]
        )
        for outcome in Outcome:
            self._requests.labels(outcome.value)
        self._show_verdicts()
        self._in_phase = {phase: self._phase.labels(phase) for phase in _PHASES}
        self._show_thresholds(slos)
        own = {metric.name for metric in self.registry.collect()}
        self._collector = WorkerCollector(workers, own)
        self.registry.register(self._collector)

    def text(self) -> bytes:
        """Every series, Prometheus text format."""
        return prometheus_client.generate_latest(self.registry)

    def gap_counts(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Gaps between tokens so far: upper bounds, and how many lie in each bucket and beyond the last bound."""
        return self._gap.counts()

    # ---- what happened ----

    def accepted(self, prompt_tokens: int) -> None:
        self._prompt_tokens.inc(prompt_tokens)

    def generated(self, num_tokens: int) -> None:
        """Tokens sent on, all those of a step at once."""
        self._tokens.inc(num_tokens)

    def first_token(self, ttft_s: float) -> None:
        self._ttft.observe(ttft_s)

    def more_tokens(self, gap_s: float, num_tokens: int) -> None:
        """Tokens that came together: the first after the gap, the others at once."""
        self._gap.observe(gap_s)
        if num_tokens > 1:
            self._gap.observe(0.0, num_tokens - 1)

    def cache_hit(self, num_tokens: int) -> None:
        self._hits.inc(num_tokens)

    def transferred(self, seconds: float) -> None:
        self._transfer.observe(seconds)

    def loop_was_late(self, lag_s: float) -> None:
        """A timer of the router's loop ran so late; a few samples a second."""
        self._lag.observe(lag_s)

    def stale(self, kind: str, count: int = 1) -> None:
        """`kind` is one of a few words of ours."""
        self._stale.labels(kind).inc(count)

    def record(self, record: RequestRecord) -> None:
        """Every request, once; without a verdict it says nothing about the SLO."""
        self._requests.labels(record.outcome.value).inc()
        if record.verdict is not None:
            word = "met" if record.verdict.met_ttft and record.verdict.met_tpot else "missed"
            slo_class = record.slo.slo_class if record.slo.slo_class in self._slo_classes else "default"
            tenant = record.tenant if record.tenant in self._tenants else "default"
            self._slo.labels(word, record.verdict.blame.value, slo_class, tenant).inc()
        if record.outcome is Outcome.FINISHED:
            if record.timing.prefill_worker == record.timing.decode_worker:
                self._stayed.inc()
            if record.completion_tokens > 1:
                self._tpot.observe(record.timing.tpot_s)
            self._whole.observe(record.ended_s)
            self._prompt_sizes.observe(record.prompt_tokens)
            self._output_sizes.observe(record.completion_tokens)
        if record.outcome is not Outcome.REJECTED:
            self._count_phases(record)

    def _count_phases(self, record: RequestRecord) -> None:
        """Those that it reached; a served one all five, though nothing moved."""
        served, timing = record.outcome is Outcome.FINISHED, record.timing
        for phase, seconds in zip(
            _PHASES,
            (timing.queue_s, timing.prefill_s, timing.transfer_s, timing.decode_wait_s, timing.decode_s),
            strict=True,
        ):
            if served or seconds > 0.0:
                self._in_phase[phase].observe(seconds)

    def worker_lost(self, worker: WorkerSnapshot) -> None:
        """Its series disappear; its share of series that name no worker is kept."""
        self._collector.retire(worker)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _show_verdicts(self) -> None:
        """From 0: a series that begins at 50 has not risen, for Prometheus, and a burst of misses would be in no rate.

        Not of every tenant where that would be too many lines to send with each scrape.
        """
        kinds = [("met", Blame.NONE), *(("missed", blame) for blame in Blame)]
        few = len(kinds) * len(self._slo_classes) * len(self._tenants) <= _MOST_VERDICTS
        for slo_class, tenant in product(self._slo_classes, self._tenants if few else ("default",)):
            for word, blame in kinds:
                self._slo.labels(word, blame.value, slo_class, tenant)

    def _show_thresholds(self, slos: Iterable[Slo]) -> None:
        shown = Gauge(
            PREFIX + "slo_threshold_seconds", "What a class asks for.", ["slo_class", "metric"], registry=self.registry
        )
        for slo in slos:
            for metric, seconds in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s)):
                if seconds is not None:
                    shown.labels(slo.slo_class, metric).set(seconds)


def _with_edges(bounds: tuple[float, ...], edges: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(sorted({*bounds, *(edge for edge in edges if edge is not None)}))
