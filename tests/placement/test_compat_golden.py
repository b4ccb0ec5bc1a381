"""The reference runs of DistServe's simulator, where their files are at hand: units, requests, and the whole table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.cli import main
from placement.compat.distserve import Parallel, read_profile
from placement.compat.distserve.instance import Backend, resolve
from placement.compat.distserve.simulate import simulate
from placement.compat.requests import Requests

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PROFILE = DATA / "distserve-a100-profile.json"

pytestmark = pytest.mark.skipif(not PROFILE.exists(), reason=f"reference runs are not at {DATA}")


def load(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def timings_ms(case: dict[str, Any], backend: str, requests: Requests, scale: float = 1.0) -> dict[str, np.ndarray]:
    prefill = Parallel(**case["prefill"])
    decode = prefill if backend == "vllm" else Parallel(**case["decode"])
    model = read_profile(PROFILE, case["model"].replace("_", "-"))
    found = simulate(resolve(model, Backend(backend), prefill, decode), requests, scale)
    return {
        name: requests.as_given(getattr(found, f"{name}_s")) * 1000 for name in ("ttft", "tpot", "e2e")
    }  # fmt: skip


def test_one_request_alone_takes_the_closed_form_time() -> None:
    for case in load("golden-closedform-units.json")["cases"]:
        found = timings_ms(case, case["engine"], Requests.of([(0.0, 512, 128)]))
        for name in ("ttft", "tpot", "e2e"):
            if f"{name}_ms" in case:
                assert abs(found[name][0] - case[f"{name}_ms"]) <= 1e-6, (case, name)


def runs() -> list[dict[str, Any]]:
    return list(load("golden-simdistserve-runs.json")["cases"])


def rows_of(case: dict[str, Any]) -> list[tuple[float, int, int]]:
    return [(row[0] / 1000, row[1], row[2]) for row in case["requests"]]


def test_every_request_of_the_reference_runs_agrees() -> None:
    compared = 0
    for case in runs():
        if "requests" in case:
            found = timings_ms(case, case["backend"], Requests.of(rows_of(case)))
            for place, name in ((3, "ttft"), (4, "tpot")):
                expected = np.array([row[place] for row in case["requests"]])
                assert np.abs(found[name] - expected).max() <= 1e-5, (case["backend"], name)
            compared += len(case["requests"])
    assert compared == 900


def test_percentiles_agree_at_every_rate() -> None:
    """The runs at other rates are the same requests, faster or slower."""
    unit = Requests.of([(at * 4, prompt, output) for at, prompt, output in rows_of(runs()[0])])
    for case in runs():
        if case["arrival"] != "poisson":
            continue
        found = timings_ms(case, case["backend"], unit, case["rate_rps"])
        for name in ("ttft", "tpot", "e2e"):
            for share in (50, 90, 95, 99):
                expected = case[f"{name}_ms"][f"p{share}"]
                assert abs(np.percentile(found[name], share) - expected) < 1e-4, (case["rate_rps"], name, share)


def test_the_plan_command_writes_the_reference_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden, requests, out = load("golden-simdistserve-table.json"), tmp_path / "r.jsonl", tmp_path / "t.json"
    lines = [
        json.dumps({"arrival_s": at * 4, "prompt_tokens": prompt, "output_tokens": output})
        for at, prompt, output in rows_of(runs()[0])
    ]
    requests.write_text("\n".join(lines))
    flags = ["plan", "--compat", "distserve", "--profile", str(PROFILE), "--model", golden["model"]]
    flags += ["--requests", str(requests), "--max-rate-per-gpu", "5", "--resolution", "0.25", "--nodes", "1"]
    flags += ["--gpus-per-node", "4", "--affinity", "low", "--slo-ttft", "0.2", "--slo-tpot", "0.1", "-o", str(out)]
    assert main(flags) == 0
    found = json.loads(out.read_text())
    assert [{key: row[key] for key in row if key != "gpus"} for row in found] == golden["table"]
    assert [row["gpus"] for row in found] == [2, 3, 3, 3, 4, 4, 3, 4, 4]
    assert "prefill tp=2,pp=1, decode tp=1,pp=2: 1.5625 requests/s per GPU on 4 GPUs" in capsys.readouterr().out
