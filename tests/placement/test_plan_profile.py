"""`pdserve plan --profile`: what a profile brings along, what it is refused for, how the plan is validated."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import plan_validation, plan_validation_twin
from bench.served import process_tree
from placement.latency.fitted_profile import load_measured_profile, profile_to_json
from placement.latency.served import ServedSteps
from placement.simulator.cluster import Delays, Jitter, Slowdown, Warming
from scheduling.latency import LatencyCoefficients

Run = Callable[..., tuple[int, str]]
WithSubject = Callable[..., Path]


def test_a_profiles_price_and_power_are_the_plans_and_a_flag_wins(
    run: Run, with_subject: WithSubject, tmp_path: Path
) -> None:
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


ALONE = {"kv_bytes": 1 << 32, "gpus": 1}
BOUNDS = ALONE | {"bounds": True, "quick": None, "processes": None, "max_num_seqs": 64}
ONE = {"kv_bytes": 1 << 32, "num_requests": 20, "max_num_seqs": 64}


@pytest.mark.parametrize(("command", "given"), [("plan", ALONE), ("plan", BOUNDS), ("simulate", ONE)])
def test_what_a_profile_lacks_is_said_with_the_answer(
    run: Run, with_subject: WithSubject, tmp_path: Path, command: str, given: dict[str, object]
) -> None:
    path = with_subject(tmp_path / "p.json")
    code, said = run(command, profile=path, **given)
    assert code == 0 and "no delays, so TTFT and TPOT are too low" in said and "not complete" not in said
    profile = load_measured_profile(path)
    path.write_text(json.dumps(profile_to_json(replace(profile, complete=False, delays=Delays()))))
    code, said = run(command, profile=path, **given)
    assert code == 0 and "the profile is not complete" in said and "no delays" not in said


@pytest.mark.parametrize(("command", "given"), [("plan", ALONE), ("plan", BOUNDS), ("simulate", ONE)])
def test_a_profile_of_coefficients_alone_is_said_to_lack_delays(
    run: Run, tmp_path: Path, command: str, given: dict[str, object]
) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(asdict(LatencyCoefficients(1e-3, 1e-5, 1e-5, 1e-9))))
    code, said = run(command, profile=path, **given)
    assert code == 0 and said.count("the profile has step times alone, no delays, so TTFT and TPOT are too low") == 1


@pytest.mark.parametrize(("command", "given"), [("plan", ALONE), ("plan", BOUNDS), ("simulate", ONE)])
def test_what_was_never_measured_is_said_with_the_answer(
    run: Run, with_subject: WithSubject, tmp_path: Path, command: str, given: dict[str, object]
) -> None:
    """The profile has steps of up to 512 prompt tokens and 64 sequences, and contexts of up to 512 tokens."""
    path, more = with_subject(tmp_path / "p.json"), given | {"chunk": "512"}
    assert "extrapolated" not in run(command, profile=path, **more)[1]
    code, said = run(command, profile=path, **(more | {"chunk": "768"}))
    assert code == 0 and "extrapolated: steps of up to 768 tokens (measured up to 512)\n" in said, said
    code, said = run(command, profile=path, **(more | {"workload": "input=600,output=9", "slo_ttft": 1}))
    assert code == 0 and "extrapolated: contexts of up to 608 tokens (measured up to 512)\n" in said, said


def test_larger_batches_than_measured_are_said_where_requests_could_form_them(
    run: Run, with_subject: WithSubject, tmp_path: Path
) -> None:
    """Not where never so many were open."""
    given = {"profile": with_subject(tmp_path / "p.json"), "kv_bytes": 1 << 36, "chunk": "512"}
    code, said = run("simulate", **given, rate=500, num_requests=300)
    assert code == 0 and re.search(r"extrapolated: up to \d+ sequences in a step \(measured up to 64\)", said), said
    assert "extrapolated" not in run("simulate", **given, rate=1, num_requests=100)[1]


@pytest.mark.parametrize(
    ("subject", "changes", "said"),
    [
        (
            {},
            {"model": "qwen3-8b"},
            "is of llama-3.1-8b, whose KV has 131,072 bytes a token in bfloat16; that of --model",
        ),
        (
            {"model": "other-8b", "weight_bytes": 9_000_000_000},
            {},
            "is of other-8b, a step of which reads 9,000,000,000 bytes of weights in bfloat16; one of --model",
        ),
        (
            {},
            {"prefill_gpu": "h100", "decode_gpu": "a100"},
            "--profile was measured on one kind of device; a100 and h100",
        ),
        ({}, {"gpu": "h100"}, "--profile was measured on a CPU; its steps are not those of h100: leave --gpu out"),
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
    run: Run,
    with_subject: WithSubject,
    tmp_path: Path,
    subject: dict[str, object],
    changes: dict[str, object],
    said: str,
) -> None:
    code, printed = run("plan", profile=with_subject(tmp_path / "p.json", **subject), **changes)
    assert (code, said in printed) == (2, True), printed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "h100"}, "--profile was measured on a CPU; its steps are not those of h100: leave --gpu out"),
        ({"decode": "gpu=a100"}, "--profile was measured on a CPU; its steps are not those of a100: leave --gpu out"),
        ({"prefill": "gpu=a100"}, "--profile was measured on one kind of device; a100 and this-machine are several"),
        ({"decode": "tp=2"}, "--decode: 1xthis-machine tp2: the profile is of workers with tp=1 and pp=1"),
    ],
)
def test_simulate_refuses_what_plan_refuses(
    run: Run, with_subject: WithSubject, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    code, printed = run("simulate", profile=with_subject(tmp_path / "p.json"), kv_bytes=1 << 32, **changes)
    assert (code, said in printed) == (2, True), printed


def test_validation_is_given_the_plan_and_two_others_around_the_predicted_goodput(
    run: Run, with_subject: WithSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert args.model is None and args.profile == profile and args.workload == "input=100..400,output=1..40"
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


def served_profile(path: Path) -> Path:
    """The profile in `path`, as if workers had been served too."""
    slowdown, jitter = Slowdown(2.0, 0.5, 0.5, 0.5, 0.5), Jitter(1.0, (1.0,), (1.0,))
    served = ServedSteps(0.0, 0.0, 0.0, Warming(1e-3, 0.5), slowdown, jitter)
    path.write_text(json.dumps(profile_to_json(replace(load_measured_profile(path), served=served))))
    return path


def test_the_mock_engine_is_not_held_against_delays_of_the_real_one(
    run: Run, with_subject: WithSubject, tmp_path: Path
) -> None:
    """Said before the search, with the command that measures the others."""
    profile = served_profile(with_subject(tmp_path / "p.json"))
    code, said = run("plan", profile=profile, validate="mock", kv_bytes=1 << 30)
    assert code == 2 and "are the real engine's; `pdserve profile MODEL -o PROFILE.json --mock-delays`" in said
    assert "requests/s" not in said


def test_workers_on_one_machine_carry_less_and_a_plan_says_which_it_is_for(
    run: Run, with_subject: WithSubject, tmp_path: Path
) -> None:
    path = served_profile(with_subject(tmp_path / "P.json"))
    given = {"profile": path, "kv_bytes": "4G", "gpus": 2, "only": "split", "no_what_if": True}
    goodput, told = [], []
    for changes in ({}, {"one_machine": True}):
        out = tmp_path / "plan.json"
        code, said = run("plan", **(given | changes | {"output": out}))
        assert code == 0, said
        goodput.append(json.loads(out.read_text())["predicted"]["goodput_rps"])
        told.append(("for one machine, --one-machine" in said, " per machine)" in said, " per worker)" in said))
        assert "GPU" not in said, "there is none"
    assert goodput[1] < 0.95 * goodput[0] and told == [(True, True, False), (False, False, True)]
    rows = {}
    for name, changes in (("own", {}), ("shared", {"one_machine": True})):
        out = tmp_path / "rows.jsonl"
        more = {"decode": "workers=2", "profile": path, "kv_bytes": "4G", "rate": 30, "num_requests": 50, "output": out}
        code, said = run("simulate", **more, **changes)
        assert code == 0, said
        rows[name] = [json.loads(line)["e2e_s"] for line in out.read_text().splitlines()]
    assert sum(rows["own"]) < sum(rows["shared"])
