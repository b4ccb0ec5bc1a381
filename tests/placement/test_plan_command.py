"""`pdserve plan` and `simulate` by pdserve's own rules: answers, files, exit codes, one line for each mistake."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest

from bench import plan_validation, plan_validation_twin
from bench.served import process_tree
from deploy.cli import main
from deploy.flags import serve_config
from deploy.planned import planned_of
from pdserve.settings import ConfigError
from placement.latency.fitted_points import StepPoint
from placement.latency.fitted_profile import Subject, make_profile, profile_to_json
from scheduling.latency import LatencyCoefficients, LatencyModel, save_profile

Run = Callable[..., tuple[int, str]]
PLAN = {
    "model": "llama-3.1-8b", "workload": "input=100..400,output=1..40", "gpus": 3, "slo-ttft": 0.2, "slo-tpot": 0.02,
    "processes": 1, "quick": True, "tp": "1", "chunk": "512",
}  # fmt: skip
SIMULATE = {"model": "llama-3.1-8b", "workload": "input=100..400,output=1..40", "decode": "workers=1", "rate": 5}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with good flags, some of them replaced (None: left out); its exit code and what it printed."""

    def call(command: str, **changes: object) -> tuple[int, str]:
        flags = (PLAN if command == "plan" else SIMULATE) | {
            name.replace("_", "-"): value for name, value in changes.items()
        }
        given = []
        for name, value in flags.items():
            given += [] if value is None else [f"--{name}"] if value is True else [f"--{name}", str(value)]
        try:
            code = main([command, *given])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr())

    return call


def test_a_plan_answers_in_a_line_and_writes_plan_and_report(run: Run, tmp_path: Path) -> None:
    code, said = run("plan", output=tmp_path / "P.json", report=tmp_path / "R.html")
    plan = json.loads((tmp_path / "P.json").read_text())
    assert code == 0 and "requests/s" in said.splitlines()[0] and "95 % confidence" in said
    assert said.splitlines()[1].startswith(("best split: ", "best colocated: ", "no split", "no colocated"))
    predicted = plan["predicted"]
    low, high = predicted["confidence_rps"]
    assert 0 < low <= predicted["goodput_rps"] < high
    assert predicted["attainment"] > 0.85 and predicted["ttft_s"]["p90"] < 0.25
    assert 0 < predicted["utilisation"]["decode"] <= 1
    assert [one["change"] for one in plan["what_if"]][:2] == ["as asked", "prompts double"]
    assert plan["what_if"][0]["rate"] == pytest.approx(predicted["goodput_rps"])
    assert plan["placement"]["placement"] == plan["candidates"][0]["placement"]
    page = (tmp_path / "R.html").read_text()
    assert page.count("<img") >= 3 and "Every placement" in page and said.splitlines()[0].split(":")[0] in page


def test_the_report_may_be_one_picture(run: Run, tmp_path: Path) -> None:
    code, said = run("plan", report=tmp_path / "R.png", rate=20)
    picture = matplotlib.image.imread(tmp_path / "R.png")
    assert code == 0 and "report: " in said
    assert picture.shape[0] > 800 and picture.shape[1] > 800 and picture.std() > 0.05


def test_bounds_alone_need_no_simulation(run: Run) -> None:
    code, said = run("plan", bounds=True, quick=None, processes=None)
    assert code == 0 and "at most" in said and "prefill compute" in said
    assert run("plan", bounds=True, quick=None, processes=None, slo_ttft=1e-6)[0] == 1


def test_the_least_for_a_rate_needs_no_number_of_gpus(run: Run) -> None:
    code, said = run("plan", rate=20, gpus=None)
    assert code == 0 and "carries 20 requests/s" in said
    assert re.search(r"at 20 requests/s \S+ % of the requests \(95 % confidence \S+ to \S+\) meet both targets: ", said)
    assert re.search(r"at most it carries \S+ requests/s; 95 % confidence \S+ to \S+", said)
    code, said = run("plan", rate=20, gpus=None, price="cost", prefill_gpu="h100,a100", decode_gpu="a100,h100+cap")
    assert code == 0 and "$/h" in said


def test_a_budget_of_money_is_enough(run: Run) -> None:
    code, said = run("plan", gpus=None, max_cost=10, no_what_if=True)
    assert code == 0 and "if prompts" not in said, said
    assert said.startswith(("colocated 2xh100", "prefill 1xh100 + decode 1xh100"))


def test_what_nothing_can_serve_is_exit_code_1(run: Run) -> None:
    code, said = run("plan", slo_ttft=1e-5)
    assert code == 1 and "no placement within the budget" in said


@pytest.mark.parametrize(
    ("command", "changes", "code", "said"),
    [
        ("plan", {"gpus": "0"}, 2, "--gpus: '0' must be a whole number"),
        ("plan", {"gpus": None}, 2, "--gpus is missing"),
        ("plan", {"model": None}, 2, "--model is missing"),
        ("plan", {"model": "no-such"}, 4, "--model is 'no-such'"),
        ("plan", {"workload": "azure-con"}, 2, "--workload is 'azure-con'"),
        ("plan", {"workload": "/no/such.csv"}, 5, "/no/such.csv"),
        ("plan", {"workload": "input=0,output=3"}, 2, "--workload input is '0'"),
        ("plan", {"gpu": "h1000"}, 2, "--gpu: GPU type 'h1000' is not known"),
        ("plan", {"decode_gpu": "h100,x"}, 2, "--decode-gpu: GPU type 'x' is not known"),
        ("plan", {"tp": "1,zwei"}, 2, "--tp: 'zwei' must be a whole number"),
        ("plan", {"pp": "0"}, 2, "--pp: '0' must be a whole number"),
        ("plan", {"chunk": "a"}, 2, "--chunk: 'a' must be a whole number"),
        ("plan", {"local_prefill_max_tokens": "-1"}, 2, "--local-prefill-max-tokens"),
        ("plan", {"rate": "inf"}, 2, "--rate: 'inf' must be a number above 0"),
        ("plan", {"price": "gpus"}, 2, "--price means nothing without --rate"),
        ("plan", {"price": "euro", "rate": 1}, 2, "--price: invalid choice: 'euro'"),
        ("plan", {"max_cost": "0"}, 2, "--max-cost: '0' must be a number above 0"),
        (
            "plan",
            {"cost_per_hour": "x"},
            2,
            "--cost-per-hour is 'x': 'x' must be a number above 0; give one for all, or",
        ),
        ("plan", {"cost_per_hour": "a100=1"}, 2, "--cost-per-hour names a100; the types are h100"),
        ("plan", {"power_w": "h100=0"}, 2, "--power-w is 'h100=0': '0' must be a number above 0"),
        ("plan", {"max_cost": 3, "gpu": "this-machine"}, 2, "--max-cost needs the price of this-machine, which is not"),
        ("plan", {"validate": "mock"}, 2, "plan --validate needs --profile with what `pdserve profile` measured"),
        ("plan", {"validate": "mock"}, 2, "--validate runs on this machine, the plan would be for h100: leave out"),
        ("plan", {"validate": "model"}, 2, "--validate runs --model, and llama-3.1-8b is no checkpoint directory"),
        ("plan", {"validate": "mock", "affinity": "low"}, 2, "--validate starts one cluster, --affinity low may"),
        ("plan", {"validate": "mock", "attainment": 0.8}, 2, "--attainment means nothing to plan --validate"),
        (
            "plan",
            {"bounds": True, "quick": None, "processes": None, "validate": "mock"},
            2,
            "--validate means nothing to",
        ),
        ("plan", {"validate": "what"}, 2, "--validate: invalid choice: 'what'"),
        ("plan", {"max_power": "x"}, 2, "--max-power: 'x' must be a number above 0"),
        ("plan", {"attainment": "1"}, 2, "--attainment: 1 must be above 0 and below 1"),
        ("plan", {"slo_ttft": "-1"}, 2, "--slo-ttft: '-1' must be a number above 0"),
        ("plan", {"slo_tpot": None}, 2, "--slo-tpot is missing"),
        ("plan", {"only": "both"}, 2, "--only: invalid choice: 'both'"),
        ("plan", {"affinity": "mid"}, 2, "--affinity: invalid choice: 'mid'"),
        ("plan", {"nodes": 2}, 2, "--nodes means nothing to plan without --compat"),
        ("plan", {"max_model_len": 20}, 2, "--max-model-len is 20; the workload's longest request has"),
        ("plan", {"kv_bytes": "0"}, 2, "--kv-bytes: '0' must be a number above 0"),
        ("plan", {"profile": "/no/such"}, 5, "/no/such"),
        ("plan", {"output": "/no/such/file"}, 6, "--output is /no/such/file; its directory does not exist"),
        ("plan", {"report": "/no/such/file"}, 6, "--report is /no/such/file; its directory does not exist"),
        ("plan", {"bounds": True, "processes": None, "quick": None, "output": "x"}, 2, "--output means nothing to"),
        ("simulate", {"decode": None}, 2, "--decode is missing"),
        ("simulate", {"decode": "workers=x"}, 2, "--decode: workers='x' must be a whole number"),
        ("simulate", {"prefill": "tp=3"}, 1, "tp=3 does not divide the 32 heads"),
        ("simulate", {"decode": "size=3"}, 2, "--decode is 'size=3'; it must be like"),
        ("simulate", {"rate": "0"}, 2, "--rate: '0' must be a number above 0"),
        ("simulate", {"output": "/"}, 6, "--output is /; is a directory"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    run: Run, command: str, changes: dict[str, object], code: int, said: str
) -> None:
    found, printed = run(command, **changes)
    assert (found, said in printed) == (code, True), printed
    assert "Traceback" not in printed
    assert len(printed.strip().splitlines()[-1]) < 400


def with_subject(path: Path, **changes: object) -> Path:
    """A profile of two kinds of step, as `pdserve profile` would write it for a worker of this machine."""
    subject = {
        "model": "llama-3.1-8b", "kv_bytes_per_token": 131072, "weight_bytes": 0, "dtype": "bfloat16", "device": "cpu",
        "threads": 1, "kernels": "", "machine": f"{platform.machine()}, {os.cpu_count()} processors",
    } | changes  # fmt: skip
    points = [StepPoint(n, n * n / 2, 0, n, 2e-3 + 4e-5 * n, 0.0, 3) for n in (16, 64, 256, 512)]
    points += [StepPoint(0, 0.0, n, 100 * n, 2e-3 + 1e-4 * n, 0.0, 3) for n in (1, 8, 32, 64)]
    path.write_text(json.dumps(profile_to_json(make_profile(Subject(**subject), points))))  # type: ignore[arg-type]
    return path


def test_a_profiles_price_and_power_are_the_plans_and_a_flag_wins(run: Run, tmp_path: Path) -> None:
    """Of one worker; two of them carry what is asked."""
    given = {"kv_bytes": 1 << 32, "rate": 15, "gpus": 4, "output": tmp_path / "P.json"}
    profile = with_subject(tmp_path / "with.json", power_w=150.0, cost_per_hour=0.4)

    def placed(**changes: object) -> tuple[int, float, float]:
        code, said = run("plan", profile=profile, **(given | changes))
        assert code == 0, said
        found = json.loads((tmp_path / "P.json").read_text())["placement"]
        return found["gpus"], found["cost_per_hour"], found["power_w"]

    gpus, cost, power = placed(price="cost")
    assert cost == pytest.approx(0.4 * gpus) and power == pytest.approx(150.0 * gpus)
    gpus, cost, power = placed(price="power", cost_per_hour="3", power_w="this-machine=200")
    assert cost == pytest.approx(3.0 * gpus) and power == pytest.approx(200.0 * gpus)
    without = with_subject(tmp_path / "without.json")
    code, said = run("plan", profile=without, **(given | {"price": "cost"}))
    assert code == 2 and "--price cost needs the price of this-machine, which is not known" in said
    code, said = run("plan", profile=without, **given)
    assert code == 0 and "$/h" not in said and " W;" not in said, "what nobody knows is not printed"


@pytest.mark.parametrize(
    ("subject", "changes", "said"),
    [
        (
            {},
            {"model": "qwen3-8b"},
            "is of llama-3.1-8b, whose KV has 131,072 bytes a token in bfloat16; that of --model",
        ),
        (
            {},
            {"prefill_gpu": "h100", "decode_gpu": "a100"},
            "--profile was measured on one kind of device; a100 and h100",
        ),
        (
            {"machine": "sparc, 3 processors"},
            {"validate": "mock"},
            "the profile was measured on sparc, 3 processors; this",
        ),
        ({"device": "cuda:0"}, {"validate": "mock"}, "--validate runs workers on the CPU, the profile is of cuda:0"),
        ({"threads": 2}, {"validate": "model"}, "--validate runs workers of one thread; the profile is of 2: make it"),
        ({}, {"tp": "2"}, "--tp 2: the profile is of workers with tp=1 and pp=1"),
    ],
)
def test_a_profile_of_something_else_is_refused(
    run: Run, tmp_path: Path, subject: dict[str, object], changes: dict[str, object], said: str
) -> None:
    code, printed = run("plan", profile=with_subject(tmp_path / "p.json", **subject), **changes)
    assert (code, said in printed) == (2, True), printed


def test_validation_is_given_the_plan_and_two_others_around_the_predicted_goodput(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it then measures is tests/bench's."""
    told: list[argparse.Namespace] = []
    monkeypatch.setattr(plan_validation, "run", lambda args, work_dir: told.append(args))
    monkeypatch.setattr(process_tree, "adopt_orphans", lambda: None)  # it would stay so for the other tests
    profile = with_subject(tmp_path / "p.json")
    code, said = run("plan", profile=profile, validate="mock", kv_bytes=1 << 30, output=tmp_path / "P.json")
    assert code == 0 and "validation: python -m bench.plan_validation --profile" in said, said
    plan = json.loads((tmp_path / "P.json").read_text())
    args = told[0]
    assert args.model is None and args.profile == profile and args.workload == PLAN["workload"]
    assert len(set(args.placements)) == 3
    assert (args.placements[0].prefill, args.placements[0].decode) == (
        plan["serve"]["prefill"],
        plan["serve"]["decode"],
    )
    assert args.chunk == plan["serve"]["max_num_batched_tokens"]
    assert args.rates[0] < plan["predicted"]["goodput_rps"] < args.rates[-1]
    assert (args.slo_ttft, args.slo_tpot) == (0.2, 0.02)
    blocks = (1 << 30) // (16 * 131072)
    assert args.kv_bytes == blocks * (plan_validation_twin.MOCK_BLOCK_BYTES + plan_validation_twin.GENERATION_BYTES)


def test_serve_starts_what_a_plan_for_this_machine_says(run: Run, tmp_path: Path) -> None:
    """Settings as they would reach the workers, and what the dashboard shows beside what is live."""
    profile, path = tmp_path / "profile.json", tmp_path / "P.json"
    save_profile(profile, LatencyModel(LatencyCoefficients(2e-3, 4e-5, 1e-4, 2e-8)))
    assert run("plan", profile=profile, kv_bytes=1 << 32, output=path)[0] == 0
    plan = json.loads(path.read_text())
    config = serve_config({"mock": str(profile)}, path)
    assert (config.prefill, config.decode) == (plan["serve"]["prefill"], plan["serve"]["decode"])
    assert config.worker.max_num_batched_tokens == 512
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
