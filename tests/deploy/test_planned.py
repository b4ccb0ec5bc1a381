"""What a plan file promised, as the dashboard wants it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.planned import planned_of
from pdserve.config import ServeConfig
from router.dashboard import Planned

CONFIG = ServeConfig(model="m", prefill=2, decode=3)


def test_a_plans_prediction_is_read(tmp_path: Path) -> None:
    """Goodput, the share and thresholds that it is for, and percentiles; workers are those of the configuration."""
    path = tmp_path / "PLAN.json"
    predicted = {"goodput_rps": 12.5, "ttft_s": {"p90": 0.4}, "tpot_s": {"p90": 0.03}}
    path.write_text(json.dumps({"predicted": predicted, "slo": {"ttft_s": 0.5, "tpot_s": 0.05, "attainment": 0.9}}))
    assert planned_of(CONFIG, path) == Planned(2, 3, "PLAN.json", 12.5, 0.9, 0.5, 0.05, 0.4, 0.03)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"prefill": 2}', '{"predicted": null, "slo": 3}', '{"predicted": {"goodput_rps": NaN}}']
)
def test_a_plan_without_a_prediction_still_has_a_name(tmp_path: Path, text: str) -> None:
    """Plain settings, or nothing readable: no number is made up."""
    path = tmp_path / "p.json"
    path.write_text(text)
    assert planned_of(CONFIG, path) == Planned(2, 3, "p.json")
    assert planned_of(CONFIG, None) == Planned(2, 3)
