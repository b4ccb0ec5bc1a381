"""Every series of the cluster in Prometheus text: the router's own, and the workers' as their status brings them.

One registry per process. Labels are bounded: SLO classes and tenants that are not configured count as `default`.
A dead worker's series disappear; what it had counted in series that name no worker stays, so that counters only grow.
"""

from __future__ import annotations

from collections.abc import Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from pdserve.slo import Blame, Slo, Timing, Verdict
from router.record import Outcome
from router.token_gaps import GapHistogram
from router.worker_series import PREFIX, WorkerCollector, WorkerSnapshot, WorkerSource

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TRANSFER_SECONDS = (0.0005, *_SECONDS)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)


class RouterMetrics:
    """What the router counts, and the collector of what workers count."""

    def __init__(
        self, workers: WorkerSource, slo_classes: Iterable[str] = ("default",), tenants: Iterable[str] = ("default",)
    ) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._slo_classes = frozenset(slo_classes)
        self._tenants = frozenset(tenants)
        self._ttft = self._histogram("time_to_first_token_seconds", "Received until the first token left.", _SECONDS)
        self._tpot = self._histogram("time_per_output_token_seconds", "(last - first token) / (n - 1).", _TOKEN_SECONDS)
        self._gap = GapHistogram(PREFIX + "inter_token_latency_seconds", "Between two tokens.", _TOKEN_SECONDS)
        self.registry.register(self._gap)
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
        self._stale = self._counter(
            "router_stale_messages", "Messages of workers that came too late or twice.", ["kind"]
        )
        for outcome in Outcome:
            self._requests.labels(outcome.value)
        own = {metric.name for metric in self.registry.collect()}
        self._collector = WorkerCollector(workers, own)
        self.registry.register(self._collector)

    def text(self) -> bytes:
        """Every series, Prometheus text format."""
        return prometheus_client.generate_latest(self.registry)

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

    def finished(self, num_tokens: int, timing: Timing) -> None:
        """A request was served."""
        if num_tokens > 1:
            self._tpot.observe(timing.tpot_s)
        for phase in ("queue", "prefill", "transfer", "decode_wait", "decode"):
            self._phase.labels(phase).observe(getattr(timing, f"{phase}_s"))

    def ended(self, outcome: Outcome, slo: Slo, tenant: str, verdict: Verdict | None) -> None:
        """Every request, once; without a verdict (the client left) it says nothing about the SLO."""
        self._requests.labels(outcome.value).inc()
        if verdict is not None:
            word = "met" if verdict.met_ttft and verdict.met_tpot else "missed"
            slo_class = slo.slo_class if slo.slo_class in self._slo_classes else "default"
            known_tenant = tenant if tenant in self._tenants else "default"
            self._slo.labels(word, verdict.blame.value, slo_class, known_tenant).inc()

    def worker_lost(self, worker: WorkerSnapshot) -> None:
        """Its series disappear; its share of series that name no worker is kept."""
        self._collector.retire(worker)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)


def missed(blame: Blame) -> Verdict:
    """The verdict on a request that was not served: both missed."""
    return Verdict(False, False, blame)
