"""Alert rules: what someone has to look at, each with what to look at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploy.observability.burn_rates import BurnRate, burn_rates
from deploy.observability.names import NOT_SERVED, SERVED, SLO_REQUESTS, misses, of_job

MIN_REQUESTS = 10  # fewer judged requests in a burn rate's long window call nobody
MIN_LINK_SHARE = 0.5  # of the links' median, or of its own usual speed
MIN_TRANSFER_BYTES = 1 << 20  # mean: what is smaller is over before its link has shown what it can
MIN_GROWING_QUEUE = 10  # sequences: a shorter queue may grow
MAX_FAILED_TRANSFERS = 0.01  # of all


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule."""

    name: str
    expression: str
    for_: str  # how long it must hold
    severity: str  # page: now; ticket: today
    summary: str
    description: str

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.for_,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.description},
        }


def alert_groups(target: float) -> list[dict[str, Any]]:
    """All alerts for a target attainment."""
    slo = [_burn(rate, target) for rate in burn_rates(target)]
    return [
        {"name": "pdserve-slo-alerts", "rules": [one.rule() for one in [*slo, _below_target(target), _nothing()]]},
        {"name": "pdserve-cluster-alerts", "rules": [one.rule() for one in [*_life(), *_handoff(), _queue()]]},
    ]


def _burn(rate: BurnRate, target: float) -> Alert:
    limit = rate.max_misses(target)
    return Alert(
        f"PdserveSloBurn{rate.name}",
        f"{misses(rate.long)} > {limit:.6g} and {misses(rate.short)} > {limit:.6g} and {_enough(rate.long)}",
        "0s",
        rate.severity,
        "{{ $labels.slo_class }}: the SLO is missed {{ $value | humanizePercentage }} of the time over " + rate.long,
        f"The error budget of a {target:.4g} target burns more than {rate.factor:g} times as fast as it may, over "
        f"{rate.long} and over {rate.short}. The service dashboard's blame panel names the phase.",
    )


def _enough(window: str) -> str:
    return f"sum by (model, slo_class) (increase({of_job(SLO_REQUESTS)}[{window}])) >= {MIN_REQUESTS}"


def _below_target(target: float) -> Alert:
    return Alert(
        "PdserveAttainmentBelowTarget",
        f"1 - {misses('30m')} < {target:.6g} and {_enough('30m')}",
        "15m",
        "ticket",
        "{{ $labels.slo_class }}: attainment is {{ $value | humanizePercentage }}, " + f"target {target:.4g}",
        "For 45 minutes fewer requests than promised met both thresholds. Look at blame, then at the phase it names.",
    )


def _nothing() -> Alert:
    def rate(outcomes: str) -> str:
        matcher = f'outcome=~"{outcomes}"'
        return f"sum by (model) (rate({of_job('pdserve_requests_total', matcher)}[5m]))"

    return Alert(
        "PdserveNothingServed",
        f"{rate(NOT_SERVED)} > 0 unless {rate(SERVED)} > 0",
        "2m",
        "page",
        "requests fail and none is served",
        "Requests arrive and every one of them fails. Look at requests by outcome, workers up, and the router's log.",
    )


def _life() -> list[Alert]:
    up = of_job("pdserve_worker_up")
    router_answers = f"on (job, instance) {of_job('up')} == 1"
    return [
        Alert(
            "PdserveRouterAbsent",
            f"{of_job('up')} == 0 or absent({of_job('up')})",
            "1m",
            "page",
            "no router answers Prometheus",
            "Nothing can be said about the cluster. Is `pdserve serve` running, and its HTTP address the one scraped?",
        ),
        Alert(
            "PdserveWorkerDown",
            f"max_over_time({up}[1h]) unless on (job, instance, worker) {up} == 1 and {router_answers}",
            "30s",
            "ticket",
            "{{ $labels.role }} worker {{ $labels.worker }} is gone",
            "It was up within the last hour. Its requests were answered or tried again; capacity is missing.",
        ),
        Alert(
            "PdserveRoleWithoutWorkers",
            f"sum by (model, job, instance, role) (max_over_time({up}[1h]))"
            f" unless on (job, instance, role) {up} == 1 and {router_answers}",
            "30s",
            "page",
            "no {{ $labels.role }} worker is left",
            "All workers of a role are gone. Without decode workers nothing is served; without prefill workers decode "
            "workers compute prompts themselves, more slowly.",
        ),
    ]


def _handoff() -> list[Alert]:
    failures = f"sum by (model) (rate({of_job('pdserve_kv_transfer_failures_total')}[5m]))"
    done = f"sum by (model) (rate({of_job('pdserve_kv_transfer_seconds_count')}[5m]))"
    moved = f"sum by (model) (rate({of_job('pdserve_kv_transfer_bytes_total')}[5m]))"
    link = of_job("pdserve_link_bandwidth_bytes_per_second")
    speed = f"avg_over_time({link}[5m])"
    return [
        Alert(
            "PdserveKvLeak",
            f"max by (model) ({of_job('pdserve_kv_leaked_blocks')}) > 0",
            "10s",
            "ticket",
            "{{ $value }} KV blocks belong to nobody",
            "A bug: a block is held that no sequence accounts for. Keep the workers' logs; restart the worker to get "
            "the memory back.",
        ),
        Alert(
            "PdserveTransferFailures",
            f"{failures} > {MAX_FAILED_TRANSFERS:g} * ({failures} + ({done} or 0 * {failures}))",
            "2m",
            "ticket",
            "{{ $value | humanize }} handoffs a second fail",
            f"More than {MAX_FAILED_TRANSFERS:.0%} of the handoffs fail. The workers dashboard shows why, by reason.",
        ),
        Alert(
            "PdserveLinkSlow",
            f"({speed} < on (model) group_left () ({MIN_LINK_SHARE:g} * quantile by (model) (0.5, {speed}))"
            f" or {speed} < {MIN_LINK_SHARE:g} * quantile_over_time(0.5, {link}[6h]))"
            f" and on (model) {moved} > {MIN_TRANSFER_BYTES} * {done}",
            "5m",
            "ticket",
            "{{ $labels.src }} to {{ $labels.dst }}: KV moves at {{ $value | humanize1024 }}B/s",
            f"Below {MIN_LINK_SHARE:.0%} of the median link, or of its own median over six hours. `pdserve doctor` "
            "measures every link.",
        ),
    ]


def _queue() -> Alert:
    depth = "role:pdserve_queue_depth:sum"
    return Alert(
        "PdserveQueueGrowing",
        f"min_over_time({depth}[5m]) > max_over_time({depth}[5m] offset 6m) and {depth} > {MIN_GROWING_QUEUE}",
        "5m",
        "ticket",
        "{{ $value }} sequences wait for {{ $labels.role }} workers, and more every minute",
        "Through five minutes the queue was longer than it ever was in the five before: load is above capacity.",
    )
