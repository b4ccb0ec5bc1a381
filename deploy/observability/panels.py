"""What the dashboards show: panels as data, so that no library of Grafana's is needed to read or to test them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from deploy.observability.names import ATTAINMENT, GOODPUT, JOB, TARGET, THRESHOLD, misses


class Kind(Enum):
    """How a panel draws its series."""

    LINES = "lines"
    STACKED = "stacked"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and what its series are called."""

    expression: str
    legend: str
    dashed: bool = False  # a limit that others are compared with


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    text: str  # what it says, and what to do about it
    unit: str  # Grafana's name of it
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 8  # of 24


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


OURS = f'job="{JOB}", model=~"$model"'
MODEL = 'model=~"$model"'
CLASS = 'model=~"$model", slo_class=~"$slo_class"'
ROLE = 'model=~"$model", role=~"$role"'
WORKERS = f'pdserve_worker_up{{{OURS}, role=~"$role"}}'
WINDOW = "[$__rate_interval]"


def rate_by(name: str, label: str, matchers: str = "") -> str:
    """A counter's increase per second, added up by a label."""
    inside = f"{OURS}, {matchers}" if matchers else OURS
    return f"sum by ({label}) (rate(pdserve_{name}{{{inside}}}{WINDOW}))"


def quantile(share: float, name: str, label: str = "", matchers: str = "") -> str:
    """A histogram's quantile, for each value of a label."""
    return (
        f"histogram_quantile({share:g}, {rate_by(name + '_bucket', 'le' + (', ' + label if label else ''), matchers)})"
    )


def percentiles(name: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, name), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99))


def mean_by(name: str, label: str, matchers: str = "") -> str:
    return f"{rate_by(name + '_sum', label, matchers)} / {rate_by(name + '_count', label, matchers)}"


def limit(metric: str) -> Query:
    """What the classes ask for, as a line."""
    one = f'{THRESHOLD}{{{OURS}, metric="{metric}", slo_class=~"$slo_class"}}'
    return Query(f"max by (slo_class) ({one})", f"SLO {metric.upper()} {{{{slo_class}}}}", True)


_SLO = Row("Goodput", (
    Panel("Goodput", "Requests a second that met both thresholds, now.", "reqps",
          (Query(f"sum({GOODPUT}{{{CLASS}}})", "goodput"),), Kind.NUMBER, 4),
    Panel("Attainment, 5 min", "Share of judged requests that met both thresholds.", "percentunit",
          (Query(f"min({ATTAINMENT}{{{CLASS}}})", "worst class"),), Kind.NUMBER, 4),
    Panel("Workers up", "By role.", "none",
          (Query(f"sum by (role) ({WORKERS})", "{{role}}"),), Kind.NUMBER, 8),
    Panel("Leaked KV blocks", "Blocks that belong to nobody. Anything but 0 is a bug.", "none",
          (Query(f"max(pdserve_kv_leaked_blocks{{{OURS}}})", "leaked"),), Kind.NUMBER, 4),
    Panel("Waiting", "Sequences in all queues.", "none",
          (Query(f"sum(role:pdserve_queue_depth:sum{{{ROLE}}})", "waiting"),), Kind.NUMBER, 4),
    Panel("Goodput by SLO class", "Requests a second that met both thresholds, beside all that ended.", "reqps",
          (Query(f"sum by (slo_class) ({GOODPUT}{{{CLASS}}})", "{{slo_class}}"),
           Query(f"sum({rate_by('requests_total', 'outcome')})", "all requests", True))),
    Panel("Attainment by SLO class", "Share that met both thresholds, and what was promised.", "percentunit",
          (Query(f"min by (slo_class) ({ATTAINMENT}{{{CLASS}}})", "{{slo_class}}"), Query(TARGET, "target", True))),
    Panel("Blame", "Requests a second that missed, by the phase that made them miss.", "reqps",
          (Query(rate_by("slo_requests_total", "blame", 'verdict="missed", slo_class=~"$slo_class"'), "{{blame}}"),),
          Kind.STACKED),
    Panel("Burn rate", "How many times too fast the error budget burns; 1 uses it up exactly.", "none",
          tuple(Query(f"max by (slo_class) ({misses(w)}{{{CLASS}}}) / scalar(1 - {TARGET})", f"{{{{slo_class}}}} {w}")
                for w in ("5m", "1h", "6h"))),
    Panel("Requests by outcome", "How requests ended, a second.", "reqps",
          (Query(rate_by("requests_total", "outcome"), "{{outcome}}"),), Kind.STACKED),
    Panel("Tokens", "Prompt tokens accepted and tokens generated, a second.", "none",
          (Query(rate_by("prompt_tokens_total", "model"), "prompt"),
           Query(rate_by("generation_tokens_total", "model"), "generated"))),
))  # fmt: skip

_LATENCY = Row("Latency", (
    Panel("Time to first token", "Received at the router until the first token left.", "s",
          (*percentiles("time_to_first_token_seconds"), limit("ttft"))),
    Panel("Time per output token", "(last - first token) / (n - 1): includes the handoff.", "s",
          (*percentiles("time_per_output_token_seconds"), limit("tpot"))),
    Panel("Inter-token latency", "Each gap between two tokens.", "s",
          (*percentiles("inter_token_latency_seconds"), limit("tpot"))),
    Panel("Phases, mean", "Where a request's time goes.", "s",
          (Query(mean_by("request_phase_seconds", "phase"), "{{phase}}"),), Kind.STACKED),
    Panel("Phases, p99", "Each phase by itself; they do not add up.", "s",
          (Query(quantile(0.99, "request_phase_seconds", "phase"), "{{phase}}"),)),
    Panel("Router's event loop", "How late a timer runs: what every request waits in the router.", "s",
          percentiles("event_loop_lag_seconds")),
))  # fmt: skip

_LOAD = Row("Load", (
    Panel("Queue by role", "Sequences that wait for a place in a batch.", "none",
          (Query(f"sum by (role) (role:pdserve_queue_depth:sum{{{ROLE}}})", "{{role}}"),)),
    Panel("Running by role", "Sequences in the batches.", "none",
          (Query(f"sum by (role) (role:pdserve_running_sequences:sum{{{ROLE}}})", "{{role}}"),)),
    Panel("Prompt tokens from the prefix cache", "Share of accepted prompt tokens whose KV was there.", "percentunit",
          (Query(f"{rate_by('prefix_cache_hit_tokens_total', 'model')} / {rate_by('prompt_tokens_total', 'model')}",
                 "hits"),)),
))  # fmt: skip

SERVICE = (_SLO, _LATENCY, _LOAD)

_ROLE_OURS = 'role=~"$role"'
_BLOCKS = f'pdserve_kv_blocks{{{OURS}, role=~"$role"'

_POOLS = Row("Workers", (
    Panel("Workers up", "A worker that is gone has no series.", "none",
          (Query(f"sum by (role) ({WORKERS})", "{{role}}"),)),
    Panel("Running by worker", "Sequences in each worker's batch.", "none",
          (Query(f"pdserve_running_sequences{{{OURS}}} * on (job, instance, worker) group_left (role) {WORKERS}",
                 "{{worker}}"),)),
    Panel("Steps a second", "Forward passes, by role.", "none",
          (Query(rate_by("step_seconds_count", "role", _ROLE_OURS), "{{role}}"),)),
    Panel("Step time", "Of one forward pass.", "s",
          (Query(quantile(0.5, "step_seconds", "role", _ROLE_OURS), "{{role}} p50"),
           Query(quantile(0.99, "step_seconds", "role", _ROLE_OURS), "{{role}} p99"))),
    Panel("Batch size", "Sequences in a step, mean and p99.", "none",
          (Query(mean_by("batch_size", "role", _ROLE_OURS), "{{role}} mean"),
           Query(quantile(0.99, "batch_size", "role", _ROLE_OURS), "{{role}} p99"))),
    Panel("Time in steps", "Seconds of forward passes in a second, by role: near the number of workers means busy.",
          "none", (Query(f"role:pdserve_step_seconds:rate5m{{{ROLE}}}", "{{role}}"),)),
))  # fmt: skip

_KV = Row("KV memory", (
    Panel("KV blocks by state", "Of all workers of the chosen roles.", "none",
          (Query(f"sum by (state) ({_BLOCKS}}})", "{{state}}"),), Kind.STACKED),
    Panel("KV in use by worker", "Share of a worker's blocks that sequences or transfers hold.", "percentunit",
          (Query(f'sum by (worker) ({_BLOCKS}, state=~"used|leased|quarantined"}}) / sum by (worker) ({_BLOCKS}}})',
                 "{{worker}}"),)),
    Panel("Leaked KV blocks", "Anything but 0 is a bug.", "none",
          (Query(f"max(pdserve_kv_leaked_blocks{{{OURS}}})", "leaked"),)),
))  # fmt: skip

_NO_FAILURES = f"0 * sum({rate_by('kv_transfer_seconds_count', 'model')})"
"""Zero where transfers are counted: what never failed has no series."""

_TRANSFERS = Row("Transfers", (
    Panel("Transfer time", "First byte expected until the decode worker owns the KV.", "s",
          percentiles("kv_transfer_seconds")),
    Panel("Bandwidth by link", "Of the last transfer on it, while bytes moved.", "Bps",
          (Query(f"pdserve_link_bandwidth_bytes_per_second{{{OURS}}}", "{{src}} to {{dst}}"),)),
    Panel("KV moved", "Bytes a second, by the transport used.", "Bps",
          (Query(rate_by("kv_transfer_bytes_total", "transport"), "{{transport}}"),), Kind.STACKED),
    Panel("Transfers a second", "Committed, and failed.", "none",
          (Query(rate_by("kv_transfer_seconds_count", "model"), "committed"),
           Query(f"sum({rate_by('kv_transfer_failures_total', 'reason')}) or {_NO_FAILURES}", "failed"))),
    Panel("Failed transfers by reason", "The error's class; a handoff that failed is tried again.", "none",
          (Query(f"{rate_by('kv_transfer_failures_total', 'reason')} or label_replace({_NO_FAILURES}, "
                 '"reason", "none", "", "")', "{{reason}}"),), Kind.STACKED, 16),
))  # fmt: skip

WORKERS_AND_TRANSFERS = (_POOLS, _KV, _TRANSFERS)
