"""What `pdserve profile` measures: a grid within an engine's limits, delays out of what was seen; and it runs."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from bench.profiler import served, together
from bench.profiler.alone import SHARES, Seen, alone_in, parse_totals, since
from bench.profiler.delays import MOCK, OUTPUT_TOKENS, Known, Trip, delays_of, mock_served, wake_up_s
from bench.profiler.mixed import Lengths, mixed_extra_s
from bench.profiler.shapes import Limits, Shape, shapes
from bench.profiler.steps import Visits, steps_of
from bench.profiler.together import Window, slowdown_of
from deploy.cli import main
from deploy.models.demo_model import demo_model_directory
from placement.latency.fitted_profile import load_measured_profile
from placement.latency.served import ServedSteps, piecewise
from placement.simulator.cluster import (
    ClusterSpec,
    Delays,
    Jitter,
    LinearSteps,
    LinkSpec,
    Slowdown,
    Warming,
    WorkerSpec,
)
from placement.simulator.requests import requests_of
from placement.simulator.simulate import simulate
from placement.workload.workload import Workload
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel, load_profile, save_profile
from scheduling.routing import Role

LIMITS = Limits(chunk_tokens=512, max_num_seqs=64, max_model_len=2048, num_blocks=1000, block_size=16)


@pytest.mark.parametrize("limits", [LIMITS, Limits(16, 4, 64, 6, 16), Limits(8192, 256, 32768, 20000, 16)])
def test_every_shape_of_the_grid_could_come_from_the_scheduler(limits: Limits) -> None:
    found = shapes(limits)
    assert {bool(one.chunks) + 2 * bool(one.decodes) for one in found} == {1, 2, 3}  # prefill, decode, mixed
    for shape in found:
        assert shape.prefill_tokens + shape.decodes <= limits.chunk_tokens
        assert len(shape.chunks) + shape.decodes <= limits.max_num_seqs
        steps = steps_of(shape, limits.block_size)
        blocks = [block for step in steps for block in step.block_ids]
        assert len(blocks) == len(set(blocks)) == shape.blocks(limits.block_size)
        assert max(blocks) < limits.num_blocks
        assert all(step.end <= limits.max_model_len for step in steps)
        assert sum(step.end for step in steps) == shape.context_tokens


def test_pairs_of_a_chunk_are_counted_one_by_one() -> None:
    shape = Shape(((5, 3), (0, 2)))
    assert shape.prefill_pairs == (6 + 7 + 8) + (1 + 2)


def test_a_cut_off_grid_is_not_complete_and_gives_the_points_it_has() -> None:
    visits = Visits([Shape(((0, 8),)), Shape((), 2, 16)])
    visits.seconds[0] += [3.0, 1.0, 2.0]
    assert not visits.complete
    [point] = visits.points()
    assert (point.prefill_tokens, point.seconds, point.spread, point.repeats) == (8, 2.0, 0.5, 3)


@pytest.mark.parametrize("link", [LinkSpec(1e12), LinkSpec(1e9, 2e-4)])
def test_delays_are_those_that_the_simulator_needs_to_see_the_same(link: LinkSpec) -> None:
    trip = Trip(64, 1024, link)
    colocated = Seen(ttft_s=MOCK.prefill_s + 4e-3, second_s=0.0, gap_s=MOCK.decode_s + 3e-4)
    split = replace(colocated, second_s=MOCK.decode_s + 1e-3)
    found = delays_of((colocated, MOCK), (replace(split, ttft_s=MOCK.prefill_s + 5e-3), MOCK), 1e-4, trip)
    for delays, outside_s in ((found.colocated, 4e-3), (found.split, 5e-3)):
        assert delays.step_s == pytest.approx(3e-4)
        assert delays.front_s + 2 * delays.message_s + delays.wake_s == pytest.approx(outside_s)
    later = delays_of((colocated, MOCK), (replace(split, second_s=MOCK.decode_s + 1.5e-3), MOCK), 1e-4, trip)
    assert 0.0 < found.split.message_s < later.split.message_s


def test_what_the_mock_engine_adds_is_what_several_requests_and_their_ways_take_more() -> None:
    alone = Seen(0.1, 0.01, 0.01, (), tuple(0.1 + 0.001 * i for i in range(-20, 21)), ())
    found = mock_served([alone], 6.2e-3, [6.9e-3, 6.8e-3, 7.6e-3])
    assert found.sequence_s == pytest.approx(1e-4)
    assert found.fronts_s == pytest.approx(tuple(0.001 * (2 * i - 19) for i in range(20)))
    assert mock_served([alone], 6.2e-3, [6.1e-3]).sequence_s == mock_served([alone], 6.2e-3, []).sequence_s == 0.0


def test_delays_are_never_negative() -> None:
    fast = Seen(ttft_s=MOCK.prefill_s, second_s=MOCK.decode_s, gap_s=0.9 * MOCK.decode_s)
    delays = delays_of((fast, MOCK), (fast, MOCK), 1e-4, Trip(64, 1024, LinkSpec(1e12))).split
    assert min(delays.front_s, delays.message_s, delays.step_s) == 0.0


def test_what_the_workers_count_is_told_from_what_an_engine_alone_would_take() -> None:
    times = LinearSteps(LatencyModel(LatencyCoefficients(1e-3, 1e-5, 0.0, 1e-6)))
    subject = served.Subject([], times, LinkSpec(1e12), 64, 100, 100, 250, 64, 2.0)
    known = served.expected(subject, 250)  # chunks of 100, 100 and 50
    contexts = [251 + i for i in range(served.OUTPUT_TOKENS - 1)]
    assert known.prefill_s == pytest.approx(1e-3 + 1e-5 * 250 / 3 + 1e-6 * (100 + 200 + 250) / 3)
    assert known.decode_s == pytest.approx(1e-3 + 1e-6 * sum(contexts) / len(contexts))


def test_what_workers_cost_one_another_is_told_from_rounds_of_another_speed_each() -> None:
    def of(speed: float, two_prompts: float, mixed: together.Took, two_decodes: float) -> dict[Window, together.Took]:
        nan = math.nan
        took = {
            together.P_ALONE: (30.0, nan), together.D_ALONE: (nan, 3.0), together.P_BESIDE_D: mixed,
            together.RESTED_ALONE: (20.0, nan), together.RESTED_BESIDE: (28.6, 3.3), together.TWO_P: (two_prompts, nan),
            together.D_OF_PAIR: (nan, 4.0), together.TWO_D: (nan, two_decodes),
        }  # fmt: skip
        assert set(took) == set(together.WINDOWS)
        return {window: (speed * p, speed * d) for window, (p, d) in took.items()}

    rounds = [of(1.0, 36.0, (33.0, 3.6), 3.9), of(2.0, 36.0, (33.0, 3.6), 3.9), of(1.0, 90.0, (9.0, 9.0), 9.0)]
    # A rested prompt takes 28.6 beside a decode that costs a tenth: 26 alone, 20 of them known, 12 at half the speed.
    assert astuple(slowdown_of(rounds, at_once=2.0)) == pytest.approx((2.0, 0.2, 0.1, 0.2, 0.0, 6.0))
    # On one core two take turns: that alone is twice as long.
    assert astuple(slowdown_of(rounds, at_once=1.0)) == (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_warming_up_is_what_the_first_decodes_take_longer() -> None:
    steady = 3e-3
    known = Warming(2e-3, 0.5)
    colocated = [steady + known.extra_s(n) for n in range(32)]
    split = [9e-3, *colocated[1:]]  # token 2 has the handoff in it
    found = served.warming_of([colocated, split[1:], []])
    assert (found.first_s, found.ratio) == (pytest.approx(2e-3, rel=1e-3), pytest.approx(0.5, rel=1e-3))
    assert served.warming_of([colocated[::-1]]) == Warming(0.0, 0.0)  # never negative
    assert served.warming_of([]) == served.warming_of([[1.0]]) == Warming(0.0, 0.0)


def test_jitter_is_how_far_lone_requests_are_off_their_median() -> None:
    ttft_s = tuple(0.1 + 0.001 * i for i in range(-20, 21))
    gap_s = tuple(0.01 * (1.0 + 0.01 * i) for i in range(-20, 21))
    seen = Seen(0.1, 0.01, 0.01, (), ttft_s, gap_s)
    found = served.jitter_of([(seen, 0.05)])
    assert len(found.prompts) == len(found.decodes) == SHARES
    assert found.prompts == pytest.approx(tuple(1.0 + 0.02 * (2 * i - 19) for i in range(20)))  # 1 ms of 50 each
    assert found.decodes == pytest.approx(tuple(1.0 + 0.01 * (2 * i - 19) for i in range(20)))
    nothing = served.jitter_of([(Seen(0.1, 0.0, 0.0, (), (0.001,), (0.0,)), 0.05)])
    assert nothing == Jitter(served.JITTER_HOLD_S, (0.5,) * 20, (0.5,) * 20)  # never negative


def test_delays_are_told_apart_from_warming_up() -> None:
    warming = Warming(2e-3, 0.5)
    known = Known(10e-3, 3e-3, warming)
    steps = [3e-3 + warming.extra_s(n) for n in range(OUTPUT_TOKENS - 1)]
    trip = Trip(64, 1024, LinkSpec(1e12))
    alone = Seen(12e-3, steps[0] + 1e-3, sum(steps[1:]) / len(steps[1:]) + 1e-4)
    delays = delays_of((alone, known), (alone, known), 0.0, trip).split
    assert delays.step_s == pytest.approx(1e-4)
    assert 0.0 < delays.message_s < 1e-3  # a millisecond's handoff, not the first decode's two more


def test_a_mixed_step_is_as_much_longer_as_makes_a_prompt_come_later_beside_an_output() -> None:
    lengths = Lengths(500, 256, 128, 64)
    steps = piecewise(LatencyCoefficients(4e-3, 1e-5, 1e-4, 1e-7))
    slowdown, jitter = Slowdown(2.0, 0.0, 0.0, 0.0, 0.0, 0.0), Jitter(1.0, (1.0,), (1.0,))
    served_steps = ServedSteps(2e-3, 5e-4, 1.5e-3, Warming(1e-3, 0.5), slowdown, jitter)
    delays = Delays(message_s=1e-3, step_s=1e-4)
    worker = WorkerSpec(
        "decode", Role.DECODE, SchedulerConfig(1024, 64, 256), 256, 16, served_steps.applied(steps), False
    )
    twin = ClusterSpec((worker,), 1024, LinkSpec(1e12), delays, warming=served_steps.warming)
    first_s, gap_s = alone_in(twin, 128, 64)
    later_s = []
    for phase in range(50):  # beside the output, when it is half done
        arrivals = np.array([0.0, first_s + (32 + phase / 50) * gap_s])
        workload = Workload.of(np.array([128, 500]), np.array([64, 1]), arrivals)
        later_s.append(simulate(twin, requests_of(workload)).requests.ttft_s[1])
    seen_s = float(np.mean(later_s)) - alone_in(twin, 500, 1)[0]
    assert mixed_extra_s(seen_s, lengths, steps, served_steps, delays) == pytest.approx(1.5e-3, rel=0.05)
    assert mixed_extra_s(-1.0, lengths, steps, served_steps, delays) == 0.0  # never less than nothing


PAGE = """# TYPE pdserve_step_seconds histogram
pdserve_step_seconds_bucket{role="decode",worker="decode-0",le="0.1"} 7
pdserve_step_seconds_sum{role="decode",worker="decode-0"} 0.5
pdserve_step_seconds_count{role="decode",worker="decode-0"} 50
pdserve_step_seconds_sum{role="decode",worker="decode-1"} 1.5
pdserve_step_seconds_count{role="decode",worker="decode-1"} 50
"""


def test_steps_are_counted_by_role() -> None:
    totals = parse_totals(PAGE)
    assert totals == {"decode": (2.0, 100.0)}
    assert since({"decode": (0.5, 60.0)}, totals, "decode") == (1.5, 40.0)
    assert since({}, totals, "prefill") == (0.0, 0.0)


def test_serving_the_mock_engine_adds_to_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LatencyModel(LatencyCoefficients(4e-3, 1e-5, 1e-4, 0.0))
    save_profile(tmp_path / "mock.json", model)
    monkeypatch.setattr(served, "TOGETHER_S", 0.3)
    monkeypatch.setattr(served, "TOGETHER_ROUNDS", 1)
    flags = ["--mock", str(tmp_path / "mock.json"), "--max-num-batched-tokens", "256"]
    subject = served.Subject(flags, LinearSteps(model), LinkSpec(1e10), 64, 256, 128, 512, 16, 64.0)
    found = served.measure_served(subject, tmp_path, requests=4)
    assert found.steps.prefill_extra_s > 0.0 and found.steps.decode_extra_s > 0.0  # a mock step is never early
    assert 0.0 <= found.steps.mixed_extra_s < 4e-3
    assert found.steps.slowdown.at_once == 64.0 and all(map(math.isfinite, astuple(found.steps.slowdown)))
    assert found.steps.jitter.prompts[0] < 1.0 < found.steps.jitter.prompts[-1]
    assert 0.0 <= found.steps.warming.first_s < 4e-3 and 0.0 <= found.steps.warming.ratio < 1.0
    assert found.delays.split.message_s > 0.0 and found.delays.colocated.front_s >= 0.0


def test_waking_a_thread_takes_time() -> None:
    assert 0.0 < wake_up_s(20) < 1.0


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    flags = ["--shapes", "24", "--budget-s", "6", "--threads", "1", "--kv-bytes", "64M", "--clock", "cpu"]
    given = ["profile", str(demo_model_directory()), "-o", str(path), *flags, "--no-delays", "--dtype", "float32"]
    assert main(given) == 0
    return path


def test_a_small_profile_of_the_demo_model_has_what_planning_needs(profiled: Path) -> None:
    profile = load_measured_profile(profiled)
    assert profile.subject is not None
    assert profile.subject.kv_bytes_per_token == 4 * 4 * 32 * 2 * 4  # layers, KV heads, head size, K and V, bytes
    assert (profile.subject.dtype, profile.subject.threads, profile.subject.device) == ("float32", 1, "cpu")
    assert {point.regime for point in profile.points} == {"prefill", "decode", "mixed"}
    assert profile.transport == "shm" and profile.linear.transfer is not None
    assert load_profile(profiled).coefficients.known
    times = profile.step_times
    assert 0.0 < times.batch_s(0, 0.0, 1, 100) < times.batch_s(512, 512 * 513 / 2, 0, 512)
    assert json.loads(profiled.read_text())["measured"]["delays"] is None


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--clock", "cpu", "--threads", "2"], 2, "--clock is cpu; that needs --threads 1"),
        (["--budget-s", "0"], 2, "must be a number above 0"),
        (["-o", "/nowhere/p.json"], 6, "--output is /nowhere/p.json"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = main(["profile", str(demo_model_directory()), "-o", str(tmp_path / "p.json"), *flags])
    except SystemExit as end:
        found = int(str(end.code))
    assert found == code
    error = capsys.readouterr().err.strip()
    assert told in error and len(error.splitlines()) == 1
