"""`pdserve serve --plan`: what it takes of a plan, and which plans it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.flags import serve_config
from deploy.planned import planned_of
from pdserve.settings import ConfigError
from scheduling.latency import LatencyCoefficients, LatencyModel, save_profile

Run = Callable[..., tuple[int, str]]


def test_serve_starts_what_a_plan_for_this_machine_says(run: Run, tmp_path: Path) -> None:
    """Settings as they would reach the workers, and what the dashboard shows beside what is live."""
    profile, path = tmp_path / "profile.json", tmp_path / "P.json"
    save_profile(profile, LatencyModel(LatencyCoefficients(2e-3, 4e-5, 1e-4, 2e-8)))
    assert run("plan", profile=profile, kv_bytes=1 << 32, output=path)[0] == 0
    plan = json.loads(path.read_text())
    config = serve_config({"mock": str(profile)}, path)
    assert (config.prefill, config.decode) == (plan["serve"]["prefill"], plan["serve"]["decode"])
    worker = config.worker
    assert (worker.max_num_batched_tokens, worker.max_num_seqs, worker.block_size) == (512, 256, 16)
    assert (worker.kv_bytes, worker.enable_prefix_caching) == (1 << 32, True)
    shown = planned_of(config, path)
    assert shown.goodput_rps == plan["predicted"]["goodput_rps"]
    assert (shown.attainment, shown.ttft_s, shown.tpot_s) == (0.9, 0.2, 0.02)
    assert serve_config({"mock": str(profile), "decode": 7}, path).decode == 7, "a flag wins"


@pytest.mark.parametrize(
    ("changes", "mock", "said"),
    [
        ({"decode": {"gpu": "h100", "workers": 1, "tp": 4, "pp": 1}}, True, "decode workers have tp=4"),
        ({"prefill": {"gpu": "h100", "workers": 1, "tp": 1, "pp": 2}}, True, "prefill workers have pp=2"),
        ({"replicas": 3}, True, "the plan has 3 replicas"),
        ({}, False, "the plan is for h100 workers, --device is cpu"),
        ({"decode": {"gpu": "a100", "workers": 1, "tp": 1, "pp": 1}}, False, "the plan is for a100 and h100"),
        (None, True, "the plan has no placement"),
    ],
)
def test_a_plan_that_cannot_be_started_here_says_why(
    tmp_path: Path, changes: dict[str, object] | None, mock: bool, said: str
) -> None:
    pool = {"gpu": "h100", "workers": 1, "tp": 1, "pp": 1}
    placement = None if changes is None else {"prefill": pool, "decode": pool, "replicas": 1} | changes
    path = tmp_path / "P.json"
    path.write_text(json.dumps({"pdserve_plan": 1, "serve": {"prefill": 1, "decode": 1}, "placement": placement}))
    given = {"mock": "profile.json"} if mock else {"model": "some/model"}
    with pytest.raises(ConfigError, match=said):
        serve_config(given, path)


def test_plain_settings_are_a_plan_too(tmp_path: Path) -> None:
    path = tmp_path / "P.json"
    path.write_text('{"prefill": 2, "decode": 3}')
    config = serve_config({"mock": "profile.json"}, path)
    assert (config.prefill, config.decode) == (2, 3)
    path.write_text('{"pdserve_plan": 2}')
    with pytest.raises(ConfigError, match="pdserve_plan is 2; this version reads 1"):
        serve_config({"mock": "profile.json"}, path)
