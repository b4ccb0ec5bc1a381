"""The profile's file: round trip, old files, errors that name the key; and step times out of others' files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.compat.distserve.phases import overhead_ms, prefill_ms
from placement.compat.errors import ProfileError
from placement.compat.splitwise.machine import interpolate
from placement.latency.fitted_points import StepPoint
from placement.latency.fitted_profile import (
    Subject,
    load_measured_profile,
    make_profile,
    profile_from_json,
    profile_to_json,
)
from placement.latency.imports import foreign_steps
from placement.latency.served import MockServed, ServedSteps
from placement.simulator.cluster import Delays, Jitter, LinearSteps, Slowdown, Warming
from scheduling.latency import load_profile, model_from_json

SUBJECT = Subject("demo", 4096, 1 << 20, "float32", "cpu", 1, "native step", "x86_64, 2 processors", None, 0.5)


def points() -> list[StepPoint]:
    sizes = [(n, 0) for n in (8, 16, 64, 256)] * 2 + [(0, b) for b in (1, 2, 8, 32)] * 2 + [(16, b) for b in (1, 4, 8)]
    found = []
    for turn, (tokens, batch) in enumerate(sizes):
        context = tokens + batch * (64 if turn % 2 else 512)
        seconds = 1e-3 + 4e-5 * tokens + 1e-4 * batch + 1e-7 * context
        found.append(StepPoint(tokens, tokens * (tokens + 1) / 2, batch, context, seconds, 0.1, 6))
    return found


def document() -> dict[str, Any]:
    profile = make_profile(SUBJECT, points(), [(1 << 16, 1e-4), (1 << 24, 4e-3)], "shm", Delays(1e-3, 5e-4, 3e-4, 1e-4))
    return json.loads(json.dumps(profile_to_json(profile)))  # type: ignore[no-any-return]


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = make_profile(
        SUBJECT, points(), [(1 << 16, 1e-4), (1 << 24, 4e-3)], "shm", Delays(1e-3), Delays(2e-3), False
    )
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_to_json(profile)))
    assert load_measured_profile(path) == profile
    assert load_profile(path) == profile.linear  # what `serve --mock` reads
    mock = replace(profile, mock=MockServed(1e-5, (-1e-3, 0.0, 2e-3)))  # a front may be shorter than the median
    path.write_text(json.dumps(profile_to_json(mock)))
    assert load_measured_profile(path) == mock


def test_served_steps_are_longer_by_what_serving_adds(tmp_path: Path) -> None:
    alone = make_profile(SUBJECT, points())
    slowdown, jitter = Slowdown(2.0, 0.2, 0.1, 0.3, 0.4, 5e-3), Jitter(0.3, (0.9, 1.1), (0.8, 1.0, 1.3))
    served = replace(alone, served=ServedSteps(2e-3, 5e-4, 1e-3, Warming(1e-3, 0.7), slowdown, jitter))
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_to_json(served)))
    assert load_measured_profile(path) == served
    linear = replace(alone, steps=None)
    for one, more in ((alone, served), (linear, replace(linear, served=served.served))):
        for shape, extra_s in (((64, 2080.0, 0, 64), 2e-3), ((0, 0.0, 4, 400), 5e-4), ((16, 136.0, 4, 80), 1e-3)):
            assert more.step_times.batch_s(*shape) == pytest.approx(one.step_times.batch_s(*shape) + extra_s)


def test_errors_at_seen_and_unseen_points_are_in_the_file() -> None:
    given = document()["measured"]
    for key in ("error", "cross_validation"):
        assert set(given[key]) == {"linear", "piecewise"}
        assert set(given[key]["linear"]) == {"prefill", "decode", "mixed", "all"}
        assert given[key]["linear"]["all"]["median"] < 1e-6


def test_a_file_with_coefficients_only_is_still_a_profile() -> None:
    old = {"base_s": 1e-3, "per_prefill_token_s": 0, "per_decode_sequence_s": 0, "per_context_token_s": 0}
    profile = profile_from_json(old)
    assert (profile.steps, profile.delays, profile.best_fit) == (None, None, "linear")
    assert isinstance(profile.step_times, LinearSteps)
    assert profile_to_json(profile) == old | {"transfer": None}


NO_CORES = {
    "at_once": 0, "prompts_by_prompts": 0, "prompts_by_decodes": 0, "decodes_by_prompts": 0, "decodes_by_decodes": 0,
    "rested_prompts_s": 0,
}  # fmt: skip
JITTER = {"hold_s": 1, "prompts": [1], "decodes": [1], "fronts_s": [-1]}
SERVED = {
    "prefill_extra_s": 0, "decode_extra_s": 0, "mixed_extra_s": 0, "warming": {"first_s": 0, "ratio": 0},
    "slowdown": NO_CORES | {"at_once": 2},
    "jitter": JITTER,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (["format"], 9, "measured: format is 9; this version reads 1"),
        (["delay"], {}, r"measured: delay is not known; there are format, .*, delays, .* \(of another version"),
        (["complete"], "no", "measured: complete is 'no'; it must be true or false"),
        (["transport"], 3, "measured: transport is 3; it must be text or null"),
        (["subject", "threads"], "two", "measured: subject: threads is 'two'; it must be a whole number"),
        (["subject", "wattage"], 3, "measured: subject: wattage is not known"),
        (["steps", "decode", "rows"], [2.0, 1.0], "measured: steps: decode: 2 rows and 4 seconds"),
        (["steps", "decode", "rows"], 4, "measured: steps: decode: rows is 4; it must be a list"),
        (["points"], {}, "measured: points must be a list, found dict"),
        (["points", 2, "seconds"], -1.0, "measured: points 2: seconds is -1.0"),
        (["delays", "front_s"], None, "measured: delays: front_s is None"),
        (["transfers", 0], {"bytes": 3}, "measured: transfers 0: seconds is missing"),
        (["error", "linear"], [], "measured: error: expected an object, found list"),
        (
            ["served"],
            SERVED | {"slowdown": [2]},
            "served: slowdown: expected an object",
        ),
        (["served"], SERVED | {"slowdown": NO_CORES}, "slowdown: at_once is 0.0"),
        (["served"], SERVED | {"warming": {"first_s": 1, "ratio": 1}}, "served: warming: warming by 1.0 s, then 1.0"),
        (["served"], SERVED | {"jitter": JITTER | {"prompts": []}}, "jitter: prompts are "),
        (["served"], SERVED | {"jitter": JITTER | {"hold_s": 0}}, "jitter: hold_s is 0.0"),
        (["served"], SERVED | {"jitter": JITTER | {"prompts": 2}}, "prompts is 2; it must be a"),
    ],
)
def test_an_error_names_file_key_and_value(keys: list[Any], value: object, told: str) -> None:
    given = document()
    inner = given["measured"]
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(ValueError, match=told) as caught:
        profile_from_json(given, "p.json")
    assert str(caught.value).startswith("p.json: ")


def test_measured_must_be_an_object_for_routers_too() -> None:
    with pytest.raises(ValueError, match="measured: expected an object, found list"):
        model_from_json(document() | {"measured": []})


# ---- files of others ----

COEFFICIENTS = {
    "tp": 2,
    "prefill": [10.0, 0.1, 1e-5],
    "decode_small": [8.0, 1e-3, 0.05],
    "decode_large": [4.0, 2e-3, 0.1],
}


@pytest.fixture
def distserve(tmp_path: Path) -> Path:
    path = tmp_path / "distserve.json"
    formulas = {"threshold_B": 95, "decode_batch_ctx_cap_tokens": 50000}
    model = {"layers": 40, "engines": {"distserve": [COEFFICIENTS]}, "kv_capacity_tokens": [[2, 1, 100000]]}
    path.write_text(json.dumps({"schema": "pd-latency-profile/1", "formulas": formulas, "models": {"m": model}}))
    return path


@pytest.fixture
def splitwise(tmp_path: Path) -> Path:
    path = tmp_path / "splitwise.json"
    curve = {"model": "llama2-70b", "gpu": "h100-80gb", "tp": 8, "batch_tokens": [128, 512, 2048, 4096],
             "prompt_ms": [60.0, 90.0, 300.0, 250.0], "token_ms": [40.0, 42.0, 50.0, 60.0]}  # fmt: skip
    path.write_text(json.dumps({"schema": "pd-latency-table/1", "curves": [curve]}))
    return path


def test_distserve_coefficients_give_the_times_of_its_rules(distserve: Path) -> None:
    foreign = foreign_steps(distserve, "m")
    assert foreign is not None
    steps = foreign("a100", 2, 1)
    prompts = [300, 500]
    pairs = sum(n * (n + 1) / 2 for n in prompts)
    told_ms = prefill_ms(np.array(COEFFICIENTS["prefill"]), 1, 800, 300**2 + 500**2) + overhead_ms(800)
    assert steps.batch_s(800, pairs, 0, 800) == pytest.approx(1e-3 * told_ms, rel=1e-12)
    for batch, (d0, d1, d2) in ((94, (8.0, 1e-3, 0.05)), (95, (4.0, 2e-3, 0.1))):
        context = 100 * batch  # before the step
        told_ms = d0 + d1 * (context + batch) + d2 * batch + overhead_ms(context)
        assert steps.batch_s(0, 0.0, batch, context + batch) == pytest.approx(1e-3 * told_ms, rel=1e-12)


def test_a_prompt_in_chunks_costs_what_it_costs_whole_but_for_the_constants(distserve: Path) -> None:
    foreign = foreign_steps(distserve, "m")
    assert foreign is not None
    steps = foreign("a100", 2, 1)
    first, second = steps.batch_s(200, 200 * 201 / 2, 0, 200), steps.batch_s(100, 100 * 501 / 2, 0, 300)
    constant = steps.prefill.seconds[0]
    assert first + second - constant == pytest.approx(steps.batch_s(300, 300 * 301 / 2, 0, 300), rel=1e-12)


def test_splitwise_tables_give_the_times_of_its_rules(splitwise: Path) -> None:
    foreign = foreign_steps(splitwise, "llama-2-70b")
    assert foreign is not None
    steps = foreign("h100", 8, 1)
    x, prompt, token = np.array([128.0, 512, 2048]), np.array([60.0, 90, 300]), np.array([40.0, 42, 50])
    for tokens in (64, 128, 700, 2048):
        assert steps.batch_s(tokens, 0.0, 0, tokens) == pytest.approx(1e-3 * interpolate(x, prompt, tokens))
        assert steps.batch_s(0, 0.0, tokens, 0) == pytest.approx(1e-3 * interpolate(x, token, tokens))
    mixed = 1e-3 * interpolate(x, prompt, 1.1 * (500 + 20))
    assert steps.batch_s(500, 0.0, 20, 0) == pytest.approx(mixed)
    assert steps.batch_s(6000, 0.0, 0, 0) > steps.batch_s(2048, 0.0, 0, 0)  # the last point fell: it is left out


def test_what_a_foreign_file_lacks_is_said(distserve: Path, splitwise: Path, tmp_path: Path) -> None:
    lacks = foreign_steps(distserve, "m"), foreign_steps(splitwise, "llama-2-70b")
    assert lacks[0] is not None and lacks[1] is not None
    with pytest.raises(ProfileError, match="tp=4; the profile has 'm' on 'distserve' at tp 2"):
        lacks[0]("a100", 4, 1)
    with pytest.raises(ProfileError, match="pp is 2, must be 1"):
        lacks[1]("h100", 8, 2)
    own = tmp_path / "own.json"
    own.write_text(json.dumps(document()))
    assert foreign_steps(own, "m") is None
    own.write_text("[1")
    with pytest.raises(ValueError, match=r"own\.json: not JSON"):
        foreign_steps(own, "m")
