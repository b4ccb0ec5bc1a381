"""The latency model adds up, profiles are checked, and the estimator finds what generated its data."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.latency import (
    MIN_STEPS,
    LatencyCoefficients,
    LatencyModel,
    OnlineLatencyEstimator,
    TransferCoefficients,
    load_profile,
    model_from_json,
    save_profile,
)

TRUE = LatencyCoefficients(0.004, 0.0001, 0.0005, 0.0000002)
MODEL = LatencyModel(TRUE, TransferCoefficients(0.001, 1e9))
PROFILE = {
    "base_s": 0.004,
    "per_prefill_token_s": 0.0001,
    "per_decode_sequence_s": 0.0005,
    "per_context_token_s": 2e-7,
    "transfer": {"latency_s": 0.001, "bytes_per_s": 1e9},
}


@given(st.integers(0, 5000), st.integers(1, 1024), st.integers(0, 1000))
def test_prefill_is_the_sum_of_its_steps(tokens: int, chunk: int, start: int) -> None:
    """The closed form equals stepping through the prompt."""
    total, done = 0.0, 0
    while done < tokens:
        size = min(chunk, tokens - done)
        done += size
        total += MODEL.step_s(size, 0, start + done)
    assert MODEL.prefill_s(tokens, chunk, start) == pytest.approx(total)


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(1, 1024))
def test_ttft_is_never_less_than_the_own_prompt(queued: int, own: int, chunk: int) -> None:
    """A queue ahead only delays, and an empty one does not."""
    alone = MODEL.prefill_s(own, chunk)
    assert MODEL.predicted_ttft_s(0, own, chunk) == pytest.approx(alone)
    assert MODEL.predicted_ttft_s(queued, own, chunk) >= alone - 1e-12
    assert MODEL.predicted_ttft_s(queued + 1, own, chunk) > MODEL.predicted_ttft_s(queued, own, chunk)


def test_transfer_is_latency_and_bytes() -> None:
    """An unknown link costs nothing."""
    assert MODEL.transfer_s(500_000_000) == pytest.approx(0.501)
    assert LatencyModel(TRUE).transfer_s(500) == 0.0


def test_profile_survives_the_file(tmp_path: Path) -> None:
    """Written whole, nothing left beside it, read back equal."""
    path = tmp_path / "profile.json"
    save_profile(path, MODEL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]
    assert load_profile(path) == MODEL
    assert json.loads(path.read_text()) == PROFILE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_s": -1}, "base_s is -1, must be a finite number of at least 0"),
        ({"base_s": True}, "base_s is True"),
        ({"base_s": "1"}, "base_s is '1'"),
        ({"base_s": float("nan")}, "base_s is nan"),
        ({"bas_s": 1}, "unknown key 'bas_s', allowed are base_s"),
        ({"transfer": {"latency_s": 0.1}}, "transfer: bytes_per_s is missing"),
        ({"transfer": {"latency_s": 0.1, "bytes_per_s": 0}}, "bytes_per_s is 0, must be above 0"),
        ({"transfer": 3}, "transfer: expected an object"),
    ],
)
def test_bad_profile_names_what_is_wrong(change: dict[str, object], message: str) -> None:
    """Key, value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        model_from_json({**PROFILE, **change})


def test_bad_profile_file_names_the_file(tmp_path: Path) -> None:
    """Broken JSON and missing keys name the path."""
    path = tmp_path / "p.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"p\.json: not JSON"):
        load_profile(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"p\.json: base_s is missing"):
        load_profile(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        load_profile(path)


def _feed(estimator: OnlineLatencyEstimator, true: LatencyCoefficients, steps: int, noise: float) -> None:
    rng = random.Random(7)
    model = LatencyModel(true)
    for _ in range(steps):
        prefill = rng.choice((0, 0, rng.randrange(1, 2048)))
        decode = rng.randrange(0, 64)
        context = decode * rng.randrange(10, 2000) + prefill
        seconds = model.step_s(prefill, decode, context)
        estimator.observe(prefill, decode, context, seconds * rng.uniform(1 - noise, 1 + noise))


def test_estimator_finds_the_coefficients() -> None:
    """Ten percent of noise, a few percent of error."""
    estimator = OnlineLatencyEstimator()
    _feed(estimator, TRUE, 2000, 0.1)
    found = estimator.coefficients()
    assert found.base_s == pytest.approx(TRUE.base_s, rel=0.1)
    assert found.per_prefill_token_s == pytest.approx(TRUE.per_prefill_token_s, rel=0.05)
    assert found.per_decode_sequence_s == pytest.approx(TRUE.per_decode_sequence_s, rel=0.05)
    assert found.per_context_token_s == pytest.approx(TRUE.per_context_token_s, rel=0.05)


def test_estimator_forgets() -> None:
    """A machine that became twice as slow is soon known as that."""
    estimator = OnlineLatencyEstimator(half_life_steps=100)
    _feed(estimator, TRUE, 1000, 0.0)
    slow = LatencyCoefficients(0.008, 0.0002, 0.001, 4e-7)
    _feed(estimator, slow, 1000, 0.0)
    assert estimator.coefficients().per_prefill_token_s == pytest.approx(0.0002, rel=0.05)


def test_estimator_is_never_negative() -> None:
    """Only prompts of one length: what cannot be told apart is still a sane model that predicts those steps."""
    estimator = OnlineLatencyEstimator()
    for _ in range(50):
        estimator.observe(100, 0, 100, 0.02)
    found = estimator.coefficients()
    assert min(found.base_s, found.per_prefill_token_s, found.per_decode_sequence_s, found.per_context_token_s) >= 0
    assert LatencyModel(found).step_s(100, 0, 100) == pytest.approx(0.02, rel=0.01)


def test_estimator_falls_with_size_stays_sane() -> None:
    """Data that would fit best with a negative slope gives a flat one."""
    estimator = OnlineLatencyEstimator()
    for tokens in range(1, 100):
        estimator.observe(tokens, 0, 0, 0.02 - tokens * 0.0001)
    assert estimator.coefficients().per_prefill_token_s == 0.0
    assert estimator.coefficients().base_s > 0.005


def test_estimator_starts_from_the_prior_and_ignores_nonsense() -> None:
    """Nothing seen: the prior; impossible durations are not seen."""
    estimator = OnlineLatencyEstimator(TRUE)
    estimator.observe(1, 1, 1, 0.0)
    estimator.observe(1, 1, 1, float("nan"))
    for _ in range(MIN_STEPS - 1):
        estimator.observe(64, 0, 64, 3.0)
    assert estimator.coefficients() == TRUE, "too few steps to believe"
    estimator.observe(64, 0, 64, 3.0)
    assert estimator.coefficients() != TRUE
    assert not LatencyCoefficients().known and TRUE.known
