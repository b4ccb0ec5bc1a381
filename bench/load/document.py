"""Results as JSON; what a field is called does not change without the schema's number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.load.compare import Comparison
from bench.load.goodput import Goodput
from bench.load.session import Run, Settings
from bench.load.target import Target

SCHEMA = "pdserve-bench-1"


@dataclass(frozen=True, slots=True)
class Document:
    """One command's results."""

    target: Target
    workload: str  # as --workload would say it
    settings: Settings
    runs: Sequence[Run]
    goodput: Goodput | None = None
    comparisons: Sequence[Comparison] = ()
    against: Target | None = None

    def as_json(self) -> dict[str, Any]:
        """Times in seconds; null for what is not known."""
        whole: dict[str, Any] = _clean(
            {
                "schema": SCHEMA,
                "server": self.target.name,
                "model": self.target.model,
                "workers": self.target.num_workers,
                "against": self.against.name if self.against else None,
                "workload": self.workload,
                "seed": self.settings.seed,
                "prompt_seed": self.settings.prompt_seed,
                "slo": asdict(self.settings.objective),
                "runs": [run_as_json(run) for run in self.runs],
                "goodput": None if self.goodput is None else _goodput(self.goodput),
                "comparisons": [_comparison(one) for one in self.comparisons],
            }
        )
        return whole


def run_as_json(run: Run, with_requests: bool = True) -> dict[str, Any]:
    """The summary, and every request in few words."""
    found: dict[str, Any] = {"rate": run.rate, **asdict(run.summary)}
    if with_requests:
        found["requests"] = [
            {
                "arrival_s": round(one.intended_s, 6),
                "prompt_tokens": one.prompt_tokens,
                "output_tokens": one.num_tokens,
                "asked_tokens": one.asked_tokens,
                "outcome": one.outcome.value,
                "ttft_s": one.ttft_s,
                "tpot_s": one.tpot_s if one.num_tokens > 1 else None,
                "e2e_s": one.e2e_s,
                "late_s": one.late_s,
                "blame": one.blame,
                "error": one.error or None,
            }
            for one in run.results
        ]
    return found


def _goodput(found: Goodput) -> dict[str, Any]:
    probes = [asdict(probe) | {"decision": probe.decision.value} for probe in found.probes]
    known = {name: getattr(found, name) for name in ("rate", "low", "high", "bounded", "complete")}
    return known | {"probes": probes}


def _comparison(one: Comparison) -> dict[str, Any]:
    sides = {"first": one.first, "second": one.second}
    found: dict[str, Any] = {name: [run_as_json(run, False) for run in runs] for name, runs in sides.items()}
    return found | {"rate": one.rate, "ratios": [asdict(ratio) for ratio in one.ratios]}


def _clean(value: Any) -> Any:
    """JSON has no nan and no infinity."""
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
