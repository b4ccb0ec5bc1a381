"""Prediction against reality: the arithmetic, and one small run on the mock engine."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.load.result import Outcome, Result
from bench.plan_validation import main, parse
from bench.plan_validation_figures import Figures, Pair, Sent, Targets, figures_of, measured, predicted
from bench.plan_validation_now import Speed, at_speed, speed_of
from bench.plan_validation_report import SCALES, by_scale, cells_of, goodput, report
from bench.plan_validation_runs import Run, Validation
from bench.plan_validation_twin import Limits, Placement, cluster_of, planned
from bench.profiler.alone import Seen, alone_in
from placement.latency.fitted import PiecewiseSteps, Regime
from placement.latency.fitted_points import StepPoint
from placement.latency.fitted_profile import Profile, Subject, make_profile, profile_to_json
from placement.latency.served import MockServed, ServedSteps
from placement.simulator.cluster import Delays, Jitter, Slowdown, Warming
from placement.simulator.requests import requests_of
from placement.simulator.simulate import simulate
from scheduling.latency import LatencyCoefficients, LatencyModel, save_profile
from scheduling.routing import Role

TARGETS = Targets(ttft_s=0.5, tpot_s=0.02)
LIMITS = Limits(chunk_tokens=512, max_num_seqs=64, max_model_len=2048, kv_bytes=1 << 20)
ALONE = Slowdown(2.0, 0.0, 0.0, 0.0, 0.0)
STEADY = Jitter(1.0, (1.0,), (1.0,))
LINEAR = LatencyModel(LatencyCoefficients(4e-3, 2e-5, 1e-4, 0.0))


def result(index: int, intended_s: float, late_s: float, ttft_s: float | None, tpot_s: float = 0.01) -> Result:
    """`ttft_s` counts from the instant of sending."""
    first_s = None if ttft_s is None else intended_s + late_s + ttft_s
    outcome = Outcome.FAILED if ttft_s is None else Outcome.OK
    return Result(index, intended_s, late_s, 0.0, outcome, 100, 8, 9.0, first_s, 8, tpot_s)


def test_figures_of_known_columns() -> None:
    ttft_s, tpot_s = np.array([0.1, 0.2, 0.3, 0.4, np.nan]), np.array([0.01, 0.01, 0.03, 0.01, 0.0])
    found = figures_of(ttft_s, tpot_s, TARGETS)
    assert (found.ttft_p50_s, found.ttft_p90_s, found.tpot_p50_s, found.tpot_p90_s) == (0.2, 0.4, 0.01, 0.03)
    assert found.attainment == 3 / 5  # one is too slow, one was not served


def test_latency_counts_from_the_sending_on_both_sides() -> None:
    results = [result(0, 1.0, 0.5, 0.1), result(1, 1.2, 0.0, 0.3), result(2, 2.0, 0.0, None)]
    sent = Sent.of(results, skip_s=0.0)
    assert sent.workload.arrival_s.tolist() == [1.2, 1.5, 2.0]  # the late one came second
    assert sent.ttft_s[:2] == pytest.approx([0.3, 0.1])
    seen = measured(sent, TARGETS)
    assert seen.ttft_p50_s == pytest.approx(0.1) and seen.ttft_p90_s == pytest.approx(0.3)
    assert seen.attainment == pytest.approx(2 / 3)


def test_the_begin_of_a_run_counts_on_neither_side() -> None:
    results = [result(i, float(i), 0.0, 9.0 if i < 2 else 0.1) for i in range(6)]
    twin = cluster_of(Placement(0, 1), Profile(LINEAR), LIMITS, mock=True)
    everything, later = (Sent.of(results, skip_s) for skip_s in (0.0, 1.5))
    columns = simulate(twin, requests_of(later.workload)).requests
    assert (measured(everything, TARGETS).attainment, measured(later, TARGETS).attainment) == (
        pytest.approx(4 / 6),
        1.0,
    )
    everything, later = (predicted(sent, columns, TARGETS) for sent in (everything, later))
    assert later.ttft_p50_s == pytest.approx(4e-3 + 100 * 2e-5)
    assert everything.ttft_p50_s == pytest.approx(later.ttft_p50_s)


def figures(ttft_s: float, attainment: float) -> Figures:
    return Figures(ttft_s, 2 * ttft_s, 0.01, 0.01, attainment)


def test_errors_are_of_medians_and_signed() -> None:
    rounds = [(figures(0.11, 0.9), figures(one, share)) for one, share in ((0.1, 0.8), (0.05, 1.0), (0.9, 0.85))]
    pair = Pair.of(rounds)
    assert pair.error("ttft_p50_s") == pytest.approx(0.1)
    assert pair.error("tpot_p90_s") == 0.0
    assert pair.attainment_points == pytest.approx(5.0)


def test_goodput_is_where_attainment_falls_through_the_wanted_share() -> None:
    one = Placement(1, 1)
    cells = {(one, rate): [(figures(0.1, told), figures(0.1, seen))]
             for rate, told, seen in ((2.0, 1.0, 1.0), (4.0, 0.95, 0.8), (6.0, 0.92, 0.2))}  # fmt: skip
    assert goodput(cells, one, "predicted", 0.9) == "above 6"
    assert goodput(cells, one, "measured", 0.9) == "3.00"
    assert goodput({(one, 4.0): cells[one, 4.0]}, one, "measured", 0.9) == "below 4"
    lines, rows = report(cells, TARGETS)
    assert any("95.0/80.0 % (+15.0)" in line for line in lines)
    assert [row["rate"] for row in rows] == [2.0, 4.0, 6.0]


def test_the_twin_has_what_serve_is_given() -> None:
    profile = Profile(LINEAR, delays=Delays(1e-3), colocated_delays=Delays(2e-3))
    split, colocated = (cluster_of(one, profile, LIMITS, True) for one in (Placement(2, 1), Placement(0, 1)))
    assert [worker.role for worker in split.workers] == [Role.PREFILL, Role.PREFILL, Role.DECODE]
    assert (split.delays.front_s, colocated.delays.front_s) == (1e-3, 2e-3)
    assert split.workers[0].num_blocks == (1 << 20) // (64 * 16 + 8)
    assert split.workers[0].scheduler.max_num_batched_tokens == 512


@pytest.mark.parametrize("text", ["2", "1+0", "a+1", "1+1+1", "-1+1"])
def test_a_placement_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be PREFILL"):
        Placement.parse(text)


def test_the_placement_of_a_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"serve": {"prefill": 2, "decode": 3, "max_num_batched_tokens": 256}}))
    assert planned(path) == (Placement(2, 3), 256)
    path.write_text(json.dumps({"serve": {}}))
    with pytest.raises(ValueError, match="has no prefill and decode workers"):
        planned(path)
    pool = {"tp": 1, "pp": 1}
    for placement in ({"decode": pool | {"tp": 4}}, {"prefill": pool | {"pp": 2}, "decode": pool}, {"replicas": 2}):
        path.write_text(json.dumps({"serve": {"prefill": 0, "decode": 1}, "placement": placement}))
        with pytest.raises(ValueError, match="workers here are whole models in one cluster"):
            planned(path)


def test_a_profile_of_the_real_engines_delays_is_not_for_the_mock_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    point = StepPoint(8, 36.0, 0, 8, 1e-3, 0.1, 3)
    subject = Subject("m", 64, 1, "float32", "cpu", 1, "native step", "here")
    made = replace(make_profile(subject, [point]), served=ServedSteps(0.0, 0.0, 0.0, Warming(0.0, 0.0), ALONE, STEADY))
    path.write_text(json.dumps(profile_to_json(made)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["plan_validation", "--profile", str(path)])
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr("bench.plan_validation.adopt_orphans", lambda: None)
        assert main() == 2
    assert "its delays are the real engine's: `pdserve profile --mock-delays`" in capsys.readouterr().err


def test_a_run_without_requests_says_so() -> None:
    with pytest.raises(ValueError, match="no request was due"):
        Sent.of([], 0.0)


def test_runs_come_back_from_their_file_and_are_predicted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [result(0, 0.0, 0.0, 0.1), result(1, 1.0, 0.25, 0.3), result(2, 2.0, 0.0, None)]
    run = Run(Placement(2, 1), 1.5, 3, Sent.of(results, 0.5), Speed(1.1, 0.9))
    kept, profile = tmp_path / "runs.json", tmp_path / "profile.json"
    kept.write_text(
        json.dumps(Validation("some/model", "input=100,output=8", 3.0, Targets(0.7, 0.03), LIMITS, (run,)).to_json())
    )
    [again] = Validation.load(kept).runs
    assert (again.placement, again.rate, again.turn, again.speed) == (run.placement, 1.5, 3, Speed(1.1, 0.9))
    for name in ("sent_s", "prompt_tokens", "output_tokens", "counts", "ttft_s", "tpot_s"):
        assert np.array_equal(getattr(again.sent, name), getattr(run.sent, name), equal_nan=name == "ttft_s")
    save_profile(profile, LINEAR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["plan_validation", "--profile", str(profile), "--measured", str(kept)])
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr("bench.plan_validation.adopt_orphans", lambda: None)
        patch.setattr("bench.plan_validation.running", None)  # nothing is started
        assert main() == 0
        said = capsys.readouterr().out
        assert "TTFT <= 0.7 s and TPOT <= 0.03 s" in said  # its own targets
        assert "some/model, input=100,output=8, 4 rounds of 3 s" in said and "2P+1D          1.5/s" in said
        kept.write_text('{"runs": [{}]}')
        assert main() == 5
    assert "not of plan_validation --json" in capsys.readouterr().err


def test_attainment_is_shown_for_laxer_and_tighter_targets() -> None:
    results = [result(i, float(i), 0.0, 0.1 * (1 + i)) for i in range(8)]  # TTFT up to 0.8 s, targets 0.5 s
    sent = Sent.of(results, 0.0)
    twin = cluster_of(Placement(0, 1), Profile(LINEAR), LIMITS, mock=True)
    told = [(Run(Placement(0, 1), 1.0, 0, sent), simulate(twin, requests_of(sent.workload)).requests)]
    lines = by_scale(told, TARGETS)
    row = next(line for line in lines if line.startswith("1 colocated"))
    assert row.split()[3:] == ["100.0/25.0", "100.0/37.5", "100.0/62.5", "100.0/87.5", "100.0/100.0", "100.0/100.0"]
    assert lines[-1].startswith("mean error 31.2 points, 2 of 6 within 3") and len(SCALES) == 6
    assert cells_of(told, TARGETS.scaled(2.0))[Placement(0, 1), 1.0][0][1].attainment == 1.0


def test_a_profile_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    path.write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["plan_validation", "--profile", str(path)])
        patch.setattr("signal.signal", lambda *_: None)
        assert main() == 5
    assert f"--profile is {path}; base_s is missing" in capsys.readouterr().err
    assert parse(["--profile", str(path)]).model is None


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--profile", "/nope"], 5, "--profile is /nope; No such file or directory"),
        (["--plan", "profile.json"], 5, "--plan is profile.json; has no prefill and decode workers to start; it must"),
        (["--plan", "text"], 5, "--plan is text; not JSON: Expecting value"),
        (["--measured", "profile.json"], 5, "--measured is profile.json; not of plan_validation --json"),
        (["--json", "."], 6, "--json is .; Is a directory"),
        (["--workload", "words"], 2, "--workload is 'words', no file; it must begin with a trace file"),
        (["--workload", "input=9000,output=9"], 2, "--max-model-len is 2,048; the workload's longest request has 9,"),
    ],
)
def test_a_bad_file_is_one_line_with_its_flag_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, told: str
) -> None:
    save_profile(tmp_path / "profile.json", LINEAR)
    (tmp_path / "text").write_text("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("sys.argv", ["plan_validation", "--profile", "profile.json", *flags])
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr("bench.plan_validation.adopt_orphans", lambda: None)
        patch.setattr("bench.plan_validation.running", None)  # nothing may start
        assert main() == code
    said = capsys.readouterr().err
    assert said.startswith(f"plan_validation: error: {told}") and said.count("\n") == 1


def test_a_small_run_on_the_mock_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, found = tmp_path / "profile.json", tmp_path / "found.json"
    save_profile(profile, LINEAR)
    flags = ["--profile", str(profile), "--placements", "0+1", "--rates", "6", "--duration", "2", "--rounds", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["plan_validation", *flags, "--json", str(found)])
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr("bench.plan_validation.adopt_orphans", lambda: None)
        assert main() == 0
    [row] = json.loads(found.read_text())["table"]
    step_s = 4e-3 + 256 * 2e-5
    assert row["placement"] == "1 colocated" and row["rounds"] == 1
    for side in ("predicted", "measured"):
        assert row[side]["ttft_p50_s"] >= step_s
        assert row[side]["tpot_p50_s"] >= 4e-3
    assert "goodput: predicted above 6" in capsys.readouterr().out


def test_lone_requests_tell_the_machines_speed_and_the_twin_takes_it() -> None:
    prompts, decodes = Regime((1.0, 4.0), (5e-3, 6e-3)), Regime((1.0, 4.0), (3e-3, 4e-3))
    delays = Delays(2e-3, 1e-3, 1e-4, 1e-4)
    steps = PiecewiseSteps(prompts, decodes, prompts)
    profile = Profile(LINEAR, steps=steps, delays=delays, colocated_delays=delays)
    for placement in (Placement(0, 1), Placement(1, 1)):
        twin = cluster_of(placement, profile, LIMITS, mock=False)
        told = alone_in(twin, 100, 9)
        speed = speed_of(Seen(2.0 * told[0], 1.5 * told[1], 1.5 * told[1]), twin, 100, 9)
        assert (speed.first, speed.later) == (pytest.approx(2.0), pytest.approx(1.5))
        again = alone_in(at_speed(twin, speed), 100, 9)
        if not placement.prefill:
            assert again == (pytest.approx(2.0 * told[0]), pytest.approx(1.5 * told[1]))
        assert again[0] == pytest.approx(2.0 * told[0]) and again[1] > told[1]
    assert alone_in(replace(twin, jitter=Jitter(1.0, (9.0,), (9.0,))), 100, 9) == told  # at its usual speed
    spec = replace(twin, slowdown=Slowdown(2.0, 0.1, 0.1, 0.1, 0.1, 3e-3), warming=Warming(2e-3, 0.5))
    slower = at_speed(spec, Speed(2.0, 1.5))
    assert slower.warming == Warming(3e-3, 0.5)
    assert slower.slowdown == Slowdown(2.0, 0.1, 0.1, 0.1, 0.1, 6e-3)  # shares of a step stay, seconds do not


def test_the_mock_twin_has_what_its_sequences_cost_between_steps() -> None:
    profile = Profile(LINEAR, delays=Delays(step_s=3e-4), mock=MockServed(1e-4, (0.0, 1e-3)))
    twin = cluster_of(Placement(0, 1), profile, LIMITS, mock=True)
    assert twin.jitter is not None and twin.jitter.fronts_s == (0.0, 1e-3)
    gaps_s = [twin.workers[0].step_times.batch_s(0, 0.0, n, 100) + twin.delays.step_s for n in (1, 2, 5)]
    assert gaps_s == pytest.approx([LINEAR.step_s(0, n, 100) + 3e-4 + 1e-4 * (n - 1) for n in (1, 2, 5)])


def test_a_mean_gap_is_made_of_the_second_token_and_the_later_ones() -> None:
    twin = cluster_of(Placement(0, 1), Profile(LINEAR), LIMITS, mock=True)
    ttft_s, tpot_s = alone_in(twin, 100, 9)
    speed = speed_of(Seen(ttft_s, 8.0 * tpot_s, 0.0), twin, 100, 9)
    assert speed == Speed(pytest.approx(1.0), pytest.approx(1.0))
    assert speed_of(Seen(3.0 * ttft_s, 0.0, 0.0), twin, 100, 1) == Speed(pytest.approx(3.0), 1.0)
