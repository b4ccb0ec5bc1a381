"""Fits of step times: they recover what made the points, and say by how much they are off where they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from placement.latency.fitted import PiecewiseSteps, Regime
from placement.latency.fitted_fit import (
    FITS,
    cross_validate,
    fit_linear,
    fit_piecewise,
    fit_transfer,
    nonnegative_least_squares,
)
from placement.latency.fitted_points import Predicts, StepPoint, by_regime, relative_errors
from placement.simulator.cluster import LinearSteps
from scheduling.latency import LatencyCoefficients, LatencyModel

TRUE = LatencyCoefficients(2e-3, 3e-5, 4e-4, 1e-7)


def shapes() -> list[StepPoint]:
    prompts = [(n, start) for n in (16, 32, 64, 128, 256, 512) for start in (0, 512, 1024)]
    points = [StepPoint(n, n * (2 * start + n + 1) / 2, 0, start + n, 1.0) for n, start in prompts]
    batches = [(b, c) for b in (1, 2, 4, 8, 16, 32) for c in (64, 512, 1024)]
    points += [StepPoint(0, 0.0, b, b * c, 1.0) for b, c in batches]
    both = [(n, b, c) for n in (16, 128, 480) for b in (1, 8, 32) for c in (64, 1024)]
    return points + [StepPoint(n, n * (n + 1) / 2, b, n + b * c, 1.0) for n, b, c in both]


def timed(model: Predicts, noise: float = 0.0) -> list[StepPoint]:
    rng = np.random.default_rng(3)
    return [
        replace(point, seconds=model.batch_s(*point.shape) * float(np.exp(noise * rng.standard_normal())))
        for point in shapes()
    ]


def stairs(rows: int) -> float:
    """Tiles of 64 rows."""
    return 1e-3 + 2e-3 * -(-rows // 64)


class Stairs:
    """What a straight line cannot follow."""

    def batch_s(self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int) -> float:
        return stairs(prefill_tokens + decode_sequences) + 1e-9 * prefill_pairs + 1e-8 * context_tokens


def test_the_linear_fit_gives_back_the_coefficients_that_made_the_points() -> None:
    found = fit_linear(timed(LinearSteps(LatencyModel(TRUE))))
    for name in ("base_s", "per_prefill_token_s", "per_decode_sequence_s", "per_context_token_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_the_piecewise_fit_gives_back_the_regimes_that_made_the_points() -> None:
    true = PiecewiseSteps(
        Regime((16.0, 64.0, 512.0), (1e-3, 3e-3, 2e-2), per_pair_s=2e-9, per_context_s=1e-7),
        Regime((1.0, 8.0, 32.0), (1e-3, 1.5e-3, 8e-3), per_context_s=2e-7),
        Regime((17.0, 129.0, 512.0), (2e-3, 8e-3, 2.5e-2), per_sequence_s=1e-5, per_context_s=2e-7),
    )
    points = timed(true)
    assert max(relative_errors(fit_piecewise(points), points)) < 1e-6


def test_no_term_is_negative_whatever_the_noise() -> None:
    model = fit_piecewise(timed(LinearSteps(LatencyModel(TRUE)), noise=0.3))
    for regime in (model.prefill, model.decode, model.mixed):
        assert min(regime.seconds) >= 0.0 and (np.diff(regime.seconds) >= 0.0).all()
        assert min(regime.per_pair_s, regime.per_sequence_s, regime.per_context_s) >= 0.0


def test_nonnegative_least_squares_meets_its_optimality_conditions() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        matrix, right = rng.standard_normal((30, 8)), rng.standard_normal(30)
        x = nonnegative_least_squares(matrix, right)
        gradient = matrix.T @ (right - matrix @ x)
        assert (x >= 0.0).all()
        assert gradient.max() < 1e-7  # no coefficient at 0 would better it
        assert np.abs(gradient[x > 0.0]).max(initial=0.0) < 1e-7  # nor one above 0, moved


def test_cross_validation_tells_a_model_that_cannot_follow_from_one_that_can() -> None:
    points = timed(Stairs())
    linear, piecewise = (cross_validate(FITS[name], points) for name in ("linear", "piecewise"))
    assert linear is not None and piecewise is not None
    assert linear["decode"].p90 > 0.1  # 32 sequences take as long as one
    assert piecewise["all"].median < 0.5 * linear["all"].median
    seen = by_regime(points, relative_errors(fit_piecewise(points), points))
    assert piecewise["prefill"].p90 > seen["prefill"].p90  # points left out count as what they are: not seen


def test_cross_validation_of_noise_is_the_noise() -> None:
    points = timed(LinearSteps(LatencyModel(TRUE)), noise=0.1)
    found = cross_validate(FITS["linear"], points)
    assert found is not None and 0.04 < found["all"].median < 0.12  # the median of |0.1 N(0, 1)| is 0.067


def test_too_few_points_are_not_validated_and_a_kind_without_points_follows_the_linear_fit() -> None:
    decodes = [point for point in timed(LinearSteps(LatencyModel(TRUE))) if point.regime == "decode"]
    assert cross_validate(FITS["linear"], decodes[:9]) is None
    model = fit_piecewise(decodes)
    assert model.batch_s(0, 0.0, 6, 600) == pytest.approx(2e-3 + 6 * 4e-4 + 600e-7, rel=1e-6)
    assert model.batch_s(32, 528.0, 0, 32) > 0.0


def test_a_linear_regime_is_the_linear_model() -> None:
    steps = PiecewiseSteps(Regime.linear(TRUE), Regime.linear(TRUE, only_decodes=True), Regime.linear(TRUE))
    linear = LinearSteps(LatencyModel(TRUE))
    for point in shapes():
        assert steps.batch_s(*point.shape) == pytest.approx(linear.batch_s(*point.shape), rel=1e-12)


def test_transfer_fit() -> None:
    found = fit_transfer([(size, 2e-4 + size / 5e9) for size in (1 << 14, 1 << 20, 1 << 24)])
    assert found is not None
    assert (found.latency_s, found.bytes_per_s) == pytest.approx((2e-4, 5e9), rel=1e-6)
    assert fit_transfer([(100, 1e-3)]) is None
    assert fit_transfer([(100, 1e-3), (200, 1e-3), (300, 0.9e-3)]) is None


@pytest.mark.parametrize(
    ("rows", "seconds", "told"),
    [
        ((1.0,), (1.0,), "1 rows and 1 seconds: 2 to 12"),
        ((1.0, 1.0), (1.0, 1.0), "must grow"),
        ((1.0, 2.0), (2.0, 1.0), "the last must not be less"),
        ((1.0, float("nan")), (1.0, 1.0), "finite"),
    ],
)
def test_a_regime_that_makes_no_sense_is_refused(
    rows: tuple[float, ...], seconds: tuple[float, ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Regime(rows, seconds)
