"""What `serve --plan` was promised: the plan file's prediction, for the dashboard to hold against what is live."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from pdserve.config import ServeConfig
from router.dashboard import Planned


def planned_of(config: ServeConfig, plan: Path | None) -> Planned:
    """The cluster that was asked for. The file was read before, so what cannot be read here is only not shown."""
    if plan is None:
        return Planned(config.prefill, config.decode)
    try:
        data = json.loads(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = {}
    said, slo = _object(data, "predicted"), _object(data, "slo")
    return Planned(
        config.prefill,
        config.decode,
        plan.name,
        goodput_rps=_number(said, "goodput_rps"),
        attainment=_number(slo, "attainment"),
        ttft_s=_number(slo, "ttft_s"),
        tpot_s=_number(slo, "tpot_s"),
        ttft_p90_s=_number(_object(said, "ttft_s"), "p90"),
        tpot_p90_s=_number(_object(said, "tpot_s"), "p90"),
    )


def _object(data: Any, name: str) -> Mapping[str, Any]:
    found = data.get(name) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _number(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)
