"""`pdserve plan --live` against a running mock cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from deploy.planning.live_fetch import router_of
from deploy.planning.live_state import live_state


def test_a_running_cluster_is_planned_for(
    serve: Callable[..., Any],
    mock_profile: Path,
    make_request: Callable[..., Any],
    make_prompts: Callable[..., list[list[int]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lengths, targets and workers are those that it serves with; step times those that it was told to take."""
    prompts = make_prompts(5, [300 + number % 200 for number in range(120)])
    flags = ("--mock", str(mock_profile), "--decode", "2", "--slo-ttft-s", "2", "--slo-tpot-s", "0.05")
    with serve("", *flags) as server:
        server.generate_all([make_request(prompt, 6) for prompt in prompts], concurrency=8)
        server.wait_all_blocks_free()  # a status that is younger than the last step
        address = server.ready["http"]
        state = live_state(router_of(address, None, None).ask())
        code = main(["plan", "--live", address, "-o", str(tmp_path / "P.json")])
    said = capsys.readouterr().out
    assert code == 0 and said.splitlines()[0].startswith("120 requests of the last "), said
    assert "now: prefill 1xworker + decode 2xworker, chunk 512: at most " in said
    plan = json.loads((tmp_path / "P.json").read_text())
    assert plan["serve"]["prefill"] + plan["serve"]["decode"] == 3 and plan["predicted"]["goodput_rps"] > 0
    assert plan["slo"]["ttft_s"] == 2.0 and plan["slo"]["tpot_s"] == 0.05
    recent = state.recent.workload
    assert sorted(recent.prompt_tokens.tolist()) == sorted(map(len, prompts)) and set(recent.output_tokens) == {6}
    (told,) = [worker.latency for worker in state.workers if worker.id == "prefill-0"]
    profile = json.loads(mock_profile.read_text())
    step_s = profile["base_s"] + 500 * profile["per_prefill_token_s"]
    assert told is not None
    measured_s = told.base_s + 500 * (told.per_prefill_token_s + told.per_context_token_s)
    assert measured_s == pytest.approx(step_s, rel=0.5)
