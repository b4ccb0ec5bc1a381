"""The names that rules and dashboards share."""

from __future__ import annotations

JOB = "pdserve"  # the scrape job of the routers; a router shows its workers' series too
PREFIX = "pdserve_"
SLO_REQUESTS = PREFIX + "slo_requests_total"
SERVED = "finished"  # outcome of a request that was served
NOT_SERVED = "failed|deadline|rejected"  # outcomes that are not the client's doing

GOODPUT = "slo_class:pdserve_goodput:rate1m"
ATTAINMENT = "slo_class:pdserve_slo_attainment:ratio_rate5m"
TARGET = "pdserve:slo_target:ratio"
THRESHOLD = PREFIX + "slo_threshold_seconds"  # labels: slo_class, metric (ttft, tpot)


def misses(window: str) -> str:
    """The recorded share of requests that missed their SLO."""
    return f"slo_class:pdserve_slo_misses:ratio_rate{window}"


def of_job(name: str, matchers: str = "") -> str:
    """A selector of a router's series."""
    return f'{name}{{job="{JOB}"{"," + matchers if matchers else ""}}}'
