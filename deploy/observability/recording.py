"""Recording rules: what dashboards and alerts ask again and again, computed once.

Named level:metric:operation. Every rule keeps the `model` label, which the scrape configuration gives.
"""

from __future__ import annotations

from typing import Any

from deploy.observability.burn_rates import WINDOWS
from deploy.observability.names import ATTAINMENT, GOODPUT, SLO_REQUESTS, TARGET, misses, of_job

_LONG_WINDOWS = {"6h", "3d"}  # costly to compute and slow to change
_LONG_INTERVAL = "1m"


def recording_groups(target: float) -> list[dict[str, Any]]:
    """The rule groups for a target attainment."""
    short = [_record(misses(window), _misses(window)) for window in WINDOWS if window not in _LONG_WINDOWS]
    long = [_record(misses(window), _misses(window)) for window in WINDOWS if window in _LONG_WINDOWS]
    return [
        {"name": "pdserve-slo", "rules": [*_service(), *short, _record(TARGET, f"vector({target:g})")]},
        {"name": "pdserve-slo-long", "interval": _LONG_INTERVAL, "rules": long},
        {"name": "pdserve-workers", "rules": _workers()},
    ]


def _service() -> list[dict[str, Any]]:
    return [
        _record(GOODPUT, _or_zero(_rate("1m", "met"), _rate("1m"))),
        _record(ATTAINMENT, f"{_or_zero(_rate('5m', 'met'), _rate('5m'))} / {_rate('5m')}"),
    ]


def _misses(window: str) -> str:
    return f"{_or_zero(_rate(window, 'missed'), _rate(window))} / {_rate(window)}"


def _rate(window: str, verdict: str | None = None) -> str:
    matcher = f'verdict="{verdict}"' if verdict else ""
    return f"sum by (model, slo_class) (rate({of_job(SLO_REQUESTS, matcher)}[{window}]))"


def _or_zero(some: str, all_of_them: str) -> str:
    """Zero where there are requests but none of that kind: a series that was never counted does not exist."""
    return f"({some} or 0 * {all_of_them})"


def _workers() -> list[dict[str, Any]]:
    up = of_job("pdserve_worker_up")
    running = f"{of_job('pdserve_running_sequences')} * on (job, instance, worker) group_left (role) {up}"
    steps, batches = of_job("pdserve_step_seconds_sum"), of_job("pdserve_batch_size_sum")
    num_steps = of_job("pdserve_batch_size_count")
    return [
        _record("role:pdserve_worker_up:sum", f"sum by (model, role) ({up})"),
        _record("role:pdserve_queue_depth:sum", f"sum by (model, role) ({of_job('pdserve_queue_depth')})"),
        _record("role:pdserve_running_sequences:sum", f"sum by (model, role) ({running})"),
        _record(
            "role:pdserve_batch_size:mean5m",
            f"sum by (model, role) (rate({batches}[5m])) / sum by (model, role) (rate({num_steps}[5m]))",
        ),
        _record("role:pdserve_step_seconds:rate5m", f"sum by (model, role) (rate({steps}[5m]))"),
    ]


def _record(name: str, expression: str) -> dict[str, Any]:
    return {"record": name, "expr": expression}
