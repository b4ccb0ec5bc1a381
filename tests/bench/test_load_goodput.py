"""How sure a share is, and the search for a rate, against functions whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from bench.load.goodput import Decision, Probe, RateSearch, Verdict
from bench.load.show import goodput_lines
from bench.load.statistics import Interval, Spread, clopper_pearson, wilson

NOTHING = Interval(0.0, 1.0)


@pytest.mark.parametrize(
    ("met", "num", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (95, 100, 0.8882, 0.9785)]
)
def test_wilson_has_the_textbook_values(met: int, num: int, low: float, high: float) -> None:
    """As published tables, and scipy's binomtest, have them."""
    found = wilson(met, num)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 0) == NOTHING


@pytest.mark.parametrize(
    ("met", "num", "low", "high"),
    [(8, 10, 0.4439, 0.9748), (0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (95, 100, 0.8872, 0.9836)],
)
def test_clopper_pearson_has_the_textbook_values(met: int, num: int, low: float, high: float) -> None:
    """As scipy's binomtest(...).proportion_ci(method='exact') has them; nothing is known of no request."""
    found = clopper_pearson(met, num)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert clopper_pearson(0, 0) == NOTHING


def test_exact_limits_of_many_requests() -> None:
    """With thousands, exact and score limits meet."""
    exact, score = clopper_pearson(18_000, 20_000), wilson(18_000, 20_000)
    assert (exact.low, exact.high) == pytest.approx((score.low, score.high), abs=1e-4)


def test_a_percentile_is_a_value_that_occurred() -> None:
    """The least that the share of values does not exceed; nan of nothing."""
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 2.0, 3.0, 3.0)
    assert math.isnan(Spread.of([]).p50)


def fed(share: float, num: int, target: float = 0.9, seed: int = 0) -> tuple[Verdict, int]:
    """A verdict that is told of a coin, and how many it took."""
    verdict, dice = Verdict(num, target), np.random.default_rng(seed)
    for index in range(num):
        if verdict.tell(index, bool(dice.random() < share)) is not None:
            return verdict, index + 1
    raise AssertionError("a verdict ends with its last request")


def test_a_clear_case_is_decided_early() -> None:
    """All met, or half: after a few dozen of thousands; close to the target it takes all, and says it is not sure."""
    (good, after_good), (bad, after_bad) = fed(1.0, 5000), fed(0.5, 5000)
    assert (good.decision, bad.decision) == (Decision.ABOVE, Decision.BELOW)
    assert after_good <= 80 and after_bad <= 20
    close, after = fed(0.901, 640, seed=1)
    assert after == 640 and close.decision in (Decision.LIKELY_ABOVE, Decision.LIKELY_BELOW)


def test_looking_early_does_not_cost_confidence() -> None:
    """At the target itself at most one run in twenty is decided; 100 runs of up to 640 requests."""
    decided = [fed(0.9, 640, seed=seed)[0].decision in (Decision.ABOVE, Decision.BELOW) for seed in range(100)]
    assert sum(decided) <= 0.05 * 100 + 3 * math.sqrt(100 * 0.05 * 0.95)


def test_only_an_unbroken_beginning_counts() -> None:
    """Quick answers first must not look like success: while request 0 is open nothing is decided."""
    verdict = Verdict(100, 0.9, skip=5)
    for index in range(6, 100):
        assert verdict.tell(index, True) is None
    assert (verdict.num_known, verdict.is_known(5), verdict.is_known(6), verdict.is_known(0)) == (0, False, True, True)
    for index in range(5):  # skipped ones count nowhere
        verdict.tell(index, False)
    assert verdict.tell(5, True) is Decision.ABOVE
    assert verdict.attainment == 1.0


def search(attainment: Callable[[float], float], start: float, resolution: float = 0.05, seed: int = 0) -> RateSearch:
    """Bisect a known function, 1,000 requests a probe."""
    rates, dice = RateSearch(start, resolution), np.random.default_rng(seed)
    while (rate := rates.next_rate()) is not None:
        verdict = Verdict(1000, 0.9)
        for index in range(1000):
            if verdict.tell(index, bool(dice.random() < attainment(rate))) is not None:
                break
        rates.tell(Probe(rate, verdict.concluded(), verdict.num_met, verdict.num_known, NOTHING))
    return rates


@pytest.mark.parametrize("start", [0.01, 1.0, 12.0, 5000.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_rate_is_found_from_anywhere(start: float, seed: int) -> None:
    """Attainment falls through 0.9 at 12 requests a second: found within a tenth, and what is sure holds it."""

    def attainment(rate: float) -> float:
        return 1 / (1 + math.exp(30 * math.log(rate / 12) - math.log(9)))

    found = search(attainment, start, seed=seed).result()
    assert found.bounded
    assert found.rate == pytest.approx(12.0, rel=0.1)
    assert found.low <= 12.3 and found.high >= 11.7
    assert found.low <= found.rate <= found.high
    assert len(found.probes) <= 30


def test_a_server_without_limit_and_one_without_hope() -> None:
    """Both end, and say what they are."""
    endless, hopeless = search(lambda rate: 1.0, 1.0).result(), search(lambda rate: 0.0, 1.0).result()
    assert (endless.bounded, endless.rate, endless.high) == (False, 1e6, math.inf)
    assert (hopeless.bounded, hopeless.rate, hopeless.low) == (True, 0.0, 0.0)


def test_a_search_that_is_cut_has_what_it_found() -> None:
    """After one probe that passed: at least that."""
    rates = RateSearch(4.0)
    assert rates.next_rate() == 4.0
    rates.tell(Probe(4.0, Decision.LIKELY_ABOVE, 19, 20, NOTHING))
    found = rates.result()
    assert (found.rate, found.low, found.high, found.bounded, found.complete) == (4.0, 0.0, math.inf, False, False)
    assert goodput_lines(found, 0.9, None, None) == ["goodput: interrupted; at least 4 requests/s passed"]
    assert goodput_lines(RateSearch(4.0).result(), 0.9, None, None) == ["goodput: interrupted; no rate had passed yet"]
