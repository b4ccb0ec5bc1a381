"""What is selected without sorting is what sorting selects."""

from __future__ import annotations

import numpy as np
import pytest

from engine.selection import Float64s, draw, drop_beyond, highest

SIZES = [1, 2, 60, 64, 129, 700, 5_000, 40_000]


def rows(size: int) -> list[Float64s]:
    """Smooth, flat, tied, and with numbers that are out."""
    generator = np.random.default_rng(size)
    smooth = generator.normal(0.0, 3.0, size)
    holes = np.where(generator.random(size) < 0.5, -np.inf, smooth)
    holes[size // 2] = 1.0
    return [smooth, generator.normal(0.0, 0.01, size), np.round(smooth), np.zeros(size), holes]


@pytest.mark.parametrize("size", SIZES)
def test_highest_is_all_that_reach_the_kth(size: int) -> None:
    """In order of position, ties included."""
    for row in rows(size):
        for count in (1, 5, 50, size // 3 + 1, size, size + 7):
            least = np.sort(row)[::-1][min(count, size) - 1]
            assert highest(row, count).tolist() == np.flatnonzero(row >= least).tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [1e-9, 0.03, 0.497, 0.9003, 0.99991])
def test_drop_beyond_keeps_the_heaviest_that_reach_the_share(size: int, share: float) -> None:
    """The shortest run from the heaviest down, first positions first among equals; weights that stay are untouched."""
    for row in rows(size):
        weights = np.exp(row)
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        expected = weights.copy()
        expected[order[1:][before[1:] >= share * weights.sum()]] = 0.0
        given = weights.copy()
        drop_beyond(given, share)
        assert np.array_equal(given, expected)


@pytest.mark.parametrize("size", SIZES)
def test_draw_is_the_inverse_of_the_running_sum(size: int) -> None:
    """At any number, 0 and just below 1 included; nothing of weight 0 is drawn."""
    generator = np.random.default_rng(size)
    for row in rows(size):
        weights = np.exp(row - row.max())
        edges = np.cumsum(weights)
        for number in [0.0, *generator.random(50), np.nextafter(1.0, 0.0)]:
            at = draw(weights, float(number))
            assert weights[at] > 0.0
            slack = 1e-12 * edges[-1]
            assert edges[at] - weights[at] - slack <= number * edges[-1] <= edges[at] + slack


def test_draw_with_one_possible_position_anywhere() -> None:
    """Where everything else weighs nothing, whatever the number."""
    for size in SIZES:
        for at in {0, size // 2, size - 1}:
            weights = np.zeros(size)
            weights[at] = 1e-300
            assert {draw(weights, number) for number in (0.0, 0.5, np.nextafter(1.0, 0.0))} == {at}
