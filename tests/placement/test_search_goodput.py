"""Goodput by bisection, stability and confidence, on clusters whose behaviour is known by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from placement.search.bounds import Slo
from placement.search.bracket import Verdict
from placement.search.goodput import Effort, confirm, find_goodput, look
from placement.search.steady import Run, Saturation, first_steady, growth_of
from placement.simulator.give_up import GiveUp
from placement.simulator.requests import Outcome
from placement.simulator.results import RequestColumns, SimulationResult

SLO = Slo(1.0, 0.1, 0.9)


def columns_of(arrival_s: np.ndarray, wait_s: np.ndarray, service_s: float = 0.1) -> RequestColumns:
    """Requests of one token that wait, then are served."""
    num = len(arrival_s)
    zero, ones = np.zeros(num), np.ones(num, np.int64)
    return RequestColumns(
        arrival_s=arrival_s, prompt_tokens=ones, output_tokens=ones, outcome=np.full(num, Outcome.FINISHED, np.int64),
        ttft_s=wait_s + service_s, tpot_s=zero, e2e_s=wait_s + service_s, queue_s=wait_s,
        prefill_s=np.full(num, service_s), transfer_s=zero, decode_wait_s=zero, decode_s=zero, max_gap_s=zero,
        cached_tokens=np.zeros(num, np.int64),
    )  # fmt: skip


def result_of(columns: RequestColumns) -> SimulationResult:
    return SimulationResult(columns, {}, float(columns.arrival_s[-1]), 0.0, 0, {})


def shares(share: Callable[[float], float], seed: int = 0) -> Run:
    """A cluster that meets both targets for `share(rate)` of its requests, each on its own."""

    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        rng = np.random.default_rng([seed, round(rate * 1e6), num_requests])
        good = rng.random(num_requests) < share(rate)
        arrival_s = np.cumsum(rng.exponential(1 / rate, num_requests))
        return result_of(columns_of(arrival_s, np.where(good, 0.0, 5.0)))

    return run


def queue(service_s: float) -> Run:
    """One server that takes exactly that long for each."""

    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        rng = np.random.default_rng(3)
        arrival_s = np.cumsum(rng.exponential(1 / rate, num_requests))
        arrival_s *= num_requests / rate / arrival_s[-1]
        free_s, waits = 0.0, np.zeros(num_requests)
        for index, at_s in enumerate(arrival_s):
            waits[index] = max(0.0, free_s - at_s)
            free_s = max(free_s, at_s) + service_s
        return result_of(columns_of(arrival_s, waits, service_s))

    return run


@pytest.mark.parametrize("edge", [0.7, 3.0, 47.0])
def test_bisection_finds_where_attainment_crosses_the_target(edge: float) -> None:
    found = find_goodput(shares(lambda rate: 0.99 if rate <= edge else 0.5), SLO, 100.0, Effort())
    assert found.rate <= edge < found.rate * 1.03
    assert found.low <= found.rate < found.high
    assert all(probe.rate < 100.0 for probe in found.probes)


def test_a_cluster_that_is_never_good_has_goodput_0_and_one_without_limits_comes_near_its_bound() -> None:
    assert find_goodput(shares(lambda rate: 0.1), SLO, 10.0, Effort()).rate == 0.0
    assert find_goodput(shares(lambda rate: 1.0), SLO, 10.0, Effort()).rate > 9.7
    assert find_goodput(shares(lambda rate: 1.0), SLO, 0.0, Effort()).rate == 0.0


def test_the_search_stops_when_the_rest_is_not_worth_it() -> None:
    wanted = find_goodput(shares(lambda rate: 1.0 if rate < 2 else 0.0), SLO, 100.0, Effort(), worth=lambda r: r > 50)
    assert len(wanted.probes) < 4


def test_both_ends_of_the_confidence_interval_hold_the_true_crossing() -> None:
    """A slope of one percentage point per percent of the rate; the true answer is 10."""
    inside = 0
    for seed in range(10):
        run = shares(lambda rate: float(np.clip(0.9 - (rate - 10.0) / 10.0, 0.0, 1.0)), seed)
        effort = Effort(max_requests=2400)
        found = confirm(run, SLO, find_goodput(run, SLO, 40.0, effort), 40.0, effort)
        assert found.low <= found.rate < found.high < 14.0, "the upper end is more than the bound"
        assert found.low > 7.0
        inside += found.low <= 10.0 <= found.high
    assert inside >= 9


def test_undecided_rates_are_given_more_requests() -> None:
    decided, _ = look(shares(lambda rate: 0.99), 5.0, SLO, Effort())
    undecided, _ = look(shares(lambda rate: 0.9), 5.0, SLO, Effort())
    assert decided.num_requests == 600
    assert undecided.num_requests == 9600


def test_requests_that_stay_long_make_the_run_longer_and_its_beginning_is_cut() -> None:
    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        return result_of(columns_of(np.arange(num_requests) / rate, np.zeros(num_requests), service_s=0.9))

    large, _ = look(run, 4000.0, SLO, Effort(min_requests=600, min_seconds=0.0))
    assert large.num_requests >= 6 * 0.9 * 4000 > Effort().max_requests, "the most is too short for such a rate"
    slow, result = look(run, 1000.0, SLO, Effort(min_requests=600, min_seconds=0.0))
    assert slow.num_requests >= 6 * 0.9 * 1000
    assert first_steady(result.requests, 0.2) == max(int(0.2 * slow.num_requests), 900)


def test_a_queue_that_grows_is_unstable_where_300_requests_pass() -> None:
    """Capacity 10/s: at 10.5/s the wait grows by 50 ms per second of traffic, and 300 requests see 1.4 s of it."""
    slo = Slo(100.0, 0.1, 0.9)
    passed = queue(0.1)(10.5, 300, GiveUp(100.0, 0.1, 0, 300)).requests
    assert passed.attainment(slo.ttft_s, slo.tpot_s) == 1.0
    seen, _ = look(queue(0.1), 10.5, slo, Effort(min_requests=300, max_requests=2000, min_seconds=0.0))
    assert seen.verdict is Verdict.UNSTABLE
    assert look(queue(0.1), 9.0, slo, Effort(min_requests=300, max_requests=2000))[0].verdict is Verdict.GOOD
    assert find_goodput(queue(0.1), slo, 20.0, Effort(max_requests=4000)).rate < 10.2


def test_growth_is_told_from_chance() -> None:
    rng = np.random.default_rng(1)
    arrival_s = np.cumsum(rng.exponential(0.1, 4000))
    noisy = columns_of(arrival_s, rng.exponential(2.0, 4000))
    growing = columns_of(arrival_s, rng.exponential(2.0, 4000) + 0.03 * arrival_s)
    assert not growth_of(noisy, 800).maybe_above(0.02)
    assert growth_of(growing, 800).maybe_above(0.02)
    assert growth_of(growing, 800).share == pytest.approx(0.03, rel=0.2)


def test_what_a_cluster_keeps_up_with_is_found_by_one_run_that_asks_for_more() -> None:
    runs: list[tuple[float, int]] = []

    def counted(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        runs.append((rate, num_requests))
        return queue(0.1)(rate, num_requests, give_up)

    saturation = Saturation(counted, 1000, 6.0)
    assert not saturation.known
    assert [saturation.served(rate, 600) for rate in (9.0, 12.0, 10.5)] == pytest.approx([10.0] * 3, rel=0.001)
    assert runs == [(13.5, 1000)]
    assert Saturation(counted, 1000, 6.0).served(3.0, 600) > 3.0, "it was asked for less than it can serve"
    assert saturation.served(40.0, 1200) == pytest.approx(10.0, rel=0.001) and runs[-1] == (60.0, 1200)


def test_a_cluster_that_takes_long_to_fill_is_asked_for_longer() -> None:
    """It serves a thousand at a time, 10 s each: of a thousand requests one might think that it serves all."""
    nums: list[int] = []

    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        nums.append(num_requests)
        arrival_s, ends = np.arange(1, num_requests + 1) / rate, np.zeros(num_requests)
        for index, at_s in enumerate(arrival_s):
            ends[index] = (max(at_s, ends[index - 1000]) if index >= 1000 else at_s) + 10.0
        return result_of(columns_of(arrival_s, ends - arrival_s - 10.0, 10.0))

    assert Saturation(run, 1000, 6.0).served(100.0, 1000) == pytest.approx(100.0, rel=0.02)
    assert nums[0] == 1000 and nums[-1] >= 6000


def test_a_backlog_that_grows_for_a_while_is_not_a_cluster_that_cannot_keep_up() -> None:
    """Requests that come later stay longer, and there is room for all."""

    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        arrival_s = np.arange(1, num_requests + 1) / rate
        stays = np.linspace(5.0, 20.0, num_requests)
        return result_of(replace(columns_of(arrival_s, np.zeros(num_requests), 0.1), e2e_s=stays, decode_s=stays))

    growing = run(10.0, 2000, GiveUp(1.0, 0.1, 0, 2000)).requests
    assert growth_of(growing, 400).maybe_above(0.02)
    assert look(run, 10.0, SLO, Effort(max_requests=2000))[0].verdict is Verdict.GOOD


def test_a_run_of_one_replica_tells_what_all_serve() -> None:
    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        return queue(0.1)(rate / 4, num_requests, give_up)

    assert Saturation(run, 2000, 6.0).served(35.0, 600) == pytest.approx(40.0, rel=0.001)


def test_a_run_that_was_given_up_is_surely_bad() -> None:
    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        assert (give_up.ttft_s, give_up.tpot_s, give_up.first) == (1.0, 0.1, 120)
        assert give_up.misses == 144  # three tenths of the 480 that count
        columns = columns_of(np.arange(num_requests) / rate, np.full(num_requests, np.nan))
        return SimulationResult(columns, {}, 1.0, 0.0, 0, {}, complete=False)

    found, _ = look(run, 5.0, SLO, Effort())
    assert found.verdict is Verdict.BAD and found.surely_bad(0.9)
