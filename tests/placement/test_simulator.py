"""The simulator: closed forms, links, prefix cache, deaths, and conservation under random clusters and happenings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.simulator.cluster import (
    ClusterEvent,
    ClusterSpec,
    Delays,
    Jitter,
    LinearSteps,
    LinkSpec,
    RoleChange,
    Slowdown,
    Warming,
    WorkerDown,
    WorkerSpec,
    WorkerUp,
)
from placement.simulator.requests import Outcome, SimRequest
from placement.simulator.simulate import simulate
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import Role, RoutingConfig

BASE_S, TOKEN_S, SEQUENCE_S = 0.004, 2e-5, 5e-5
MODEL = LinearSteps(LatencyModel(LatencyCoefficients(BASE_S, TOKEN_S, SEQUENCE_S, 0.0)))
CHUNK = 128
BLOCK = 16


def worker(name: str, role: Role, *, num_blocks: int = 512, caching: bool = False) -> WorkerSpec:
    config = SchedulerConfig(max_model_len=4096, max_num_seqs=16, max_num_batched_tokens=CHUNK)
    return WorkerSpec(name, role, config, num_blocks, BLOCK, MODEL, prefix_caching=caching)


def split(num_prefill: int = 1, num_decode: int = 1, **more: object) -> ClusterSpec:
    workers = [worker(f"p{i}", Role.PREFILL) for i in range(num_prefill)]
    workers += [worker(f"d{i}", Role.DECODE) for i in range(num_decode)]
    return ClusterSpec(tuple(workers), 1 << 16, LinkSpec(1e9, 1e-3), **more)  # type: ignore[arg-type]


def test_one_request_split_is_what_one_computes_by_hand() -> None:
    delays = Delays(front_s=0.002, message_s=0.001)
    result = simulate(split(delays=delays), [SimRequest(1.0, 300, 11)])
    row = result.requests
    # 300 tokens are chunks of 128, 128, 44; the request comes in through the front and one message, token 1 one back
    prefill_s = 3 * BASE_S + 300 * TOKEN_S
    assert row.ttft_s[0] == pytest.approx(0.002 + 0.001 + prefill_s + 0.001)
    # blocks 0..15 went ahead; after the last chunk: announcement, link, then ten steps and the message of the last
    last_blocks = -(-300 // BLOCK) - 16
    move_s = 0.001 + 0.001 + last_blocks * (1 << 16) / 1e9
    decode_s = 10 * (BASE_S + SEQUENCE_S)
    assert row.e2e_s[0] == pytest.approx(0.002 + 0.001 + prefill_s + move_s + decode_s + 0.001)
    assert row.tpot_s[0] == pytest.approx((row.e2e_s[0] - row.ttft_s[0]) / 10)
    assert row.transfer_s[0] == pytest.approx(move_s) and row.queue_s[0] == pytest.approx(0.004)


def test_one_request_colocated_has_no_transfer() -> None:
    result = simulate(split(0, 1), [SimRequest(0.0, 300, 11)])
    row = result.requests
    assert row.ttft_s[0] == pytest.approx(3 * BASE_S + 300 * TOKEN_S)
    assert row.e2e_s[0] == pytest.approx(row.ttft_s[0] + 10 * (BASE_S + SEQUENCE_S))
    assert row.transfer_s[0] == 0.0 and result.moved_bytes == 0.0


def test_one_token_never_moves() -> None:
    result = simulate(split(), [SimRequest(0.0, 300, 1)])
    assert result.requests.outcome[0] == Outcome.FINISHED and result.requests.output_tokens[0] == 1


def test_two_flows_from_one_port_share_it() -> None:
    slow = ClusterSpec(split(1, 2).workers, 1 << 20, LinkSpec(1e8))
    alone = simulate(slow, [SimRequest(0.0, 16, 2)])
    both = simulate(slow, [SimRequest(0.0, 16, 2), SimRequest(0.0, 16, 2)])
    assert alone.requests.transfer_s[0] == pytest.approx((1 << 20) / 1e8)
    # the second prompt is computed in a step of its own while the first one's block moves alone, then both share
    head_start_s, move_s = BASE_S + 16 * TOKEN_S, (1 << 20) / 1e8
    assert both.requests.transfer_s[0] == pytest.approx(head_start_s + 2 * (move_s - head_start_s))
    assert both.moved_bytes == pytest.approx(2 << 20)


def test_a_prompt_that_fits_no_pool_is_rejected_and_a_full_router_rejects() -> None:
    small = ClusterSpec((worker("d0", Role.DECODE, num_blocks=8),), 1024, LinkSpec(1e9), max_in_flight=1)
    result = simulate(small, [SimRequest(0.0, 200, 2), SimRequest(0.0, 100, 2), SimRequest(0.0, 100, 2)])
    assert list(result.requests.outcome) == [Outcome.REJECTED, Outcome.FINISHED, Outcome.REJECTED]
    assert result.requests.attainment(1e9, 1e9) == pytest.approx(1 / 3)


def test_a_cached_prefix_is_neither_computed_nor_moved_again() -> None:
    spec = split()
    caching = ClusterSpec(
        tuple(worker(w.worker_id, w.role, caching=True) for w in spec.workers), spec.block_bytes, spec.link
    )
    first, again = SimRequest(0.0, 1024, 4, prefix_ids=(7, 8)), SimRequest(5.0, 1024, 4, prefix_ids=(7, 8))
    result = simulate(caching, [first, again])
    assert result.requests.cached_tokens[0] == 0 and result.requests.cached_tokens[1] == 1024 - BLOCK
    assert result.moved_bytes == pytest.approx(64 * (1 << 16))


def test_a_dead_decode_worker_fails_its_requests_and_comes_back() -> None:
    requests = [SimRequest(0.0, 64, 200), SimRequest(0.5, 64, 4), SimRequest(2.0, 64, 4)]
    result = simulate(split(), requests, [WorkerDown(0.3, "d0"), WorkerUp(1.0, "d0")])
    assert list(result.requests.outcome) == [Outcome.FAILED, Outcome.REJECTED, Outcome.FINISHED]


def test_a_role_change_drains_first() -> None:
    requests = [SimRequest(0.1 * i, 256, 20) for i in range(40)]
    result = simulate(split(2, 1), requests, [RoleChange(1.0, "p1", Role.DECODE, takes_s=0.2)])
    assert (result.requests.outcome == Outcome.FINISHED).all()
    assert result.workers["p1"].prefill_tokens > 0 and result.workers["p1"].decode_tokens > 0


def test_workers_of_one_machine_slow_one_another_down() -> None:
    half = Slowdown(9.0, 0.5, 0.0, 0.0, 0.0)  # prompts lose half to another's prompts
    spec = ClusterSpec((worker("a", Role.DECODE), worker("b", Role.DECODE)), 1 << 16, LinkSpec(1e9), slowdown=half)
    result = simulate(spec, [SimRequest(0.0, 100, 1), SimRequest(0.0, 100, 1), SimRequest(1.0, 100, 1)])
    alone_s = BASE_S + 100 * TOKEN_S
    assert result.requests.ttft_s == pytest.approx([1.5 * alone_s, 1.5 * alone_s, alone_s])
    assert sum(counts.busy_s for counts in result.workers.values()) == pytest.approx(4.0 * alone_s)


def test_decodes_warm_up_behind_a_prompt_and_behind_a_rest() -> None:
    warming = Warming(8e-3, 0.5)
    alone = ClusterSpec((worker("a", Role.DECODE),), 1 << 16, LinkSpec(1e9))
    requests = [SimRequest(0.0, 100, 5), SimRequest(1.0, 100, 5)]
    told, cold = (simulate(spec, requests).requests for spec in (alone, replace(alone, warming=warming)))
    more_s = (8e-3 + 4e-3 + 2e-3 + 1e-3) / 4  # each of the four decodes
    assert cold.ttft_s == pytest.approx(told.ttft_s)
    assert cold.tpot_s == pytest.approx(told.tpot_s + more_s)  # the second request too: the worker had rested
    # A prompt between the decodes of another: they warm up again behind it.
    busy = [SimRequest(0.0, 100, 5), SimRequest(float(cold.ttft_s[0] + 1e-3), 100, 1)]
    again = simulate(replace(alone, warming=warming), busy).requests
    between = simulate(alone, busy).requests
    assert float(again.tpot_s[0] - between.tpot_s[0]) > more_s


def test_a_machine_is_now_faster_now_slower() -> None:
    jitter = Jitter(0.5, (1.0, 2.0), (0.5, 3.0))
    steady = ClusterSpec((worker("a", Role.DECODE),), 1 << 16, LinkSpec(1e9))
    requests = [SimRequest(float(at), 100, 5) for at in range(200)]
    told, usual = (simulate(spec, requests).requests for spec in (replace(steady, jitter=jitter), steady))
    slower, later = told.ttft_s / usual.ttft_s, told.tpot_s / usual.tpot_s
    assert sorted(set(slower.round(6))) == [1.0, 2.0] and sorted(set(later.round(6))) == [0.5, 3.0]
    for slow in (slower > 1.5, later > 1.5):
        assert 70 < slow.sum() < 130  # of 200: as likely as not
    assert (simulate(replace(steady, jitter=jitter), requests).requests.ttft_s == told.ttft_s).all()


def test_a_request_comes_now_sooner_now_later() -> None:
    jitter = Jitter(1.0, (1.0,), (1.0,), (-0.001, 0.0, 0.004))
    steady = ClusterSpec((worker("a", Role.DECODE),), 1 << 16, LinkSpec(1e9), Delays(front_s=0.002))
    requests = [SimRequest(float(at), 100, 1) for at in range(100)]
    told, usual = (simulate(spec, requests).requests for spec in (replace(steady, jitter=jitter), steady))
    assert set((told.ttft_s - usual.ttft_s).round(6)) == {-0.001, 0.0, 0.004}
    early = replace(steady, jitter=replace(jitter, fronts_s=(-1.0,)))  # never before it was sent
    assert simulate(early, requests).requests.ttft_s == pytest.approx(usual.ttft_s - 0.002)


def test_a_workers_speed_is_its_own_and_lasts() -> None:
    jitter = Jitter(0.5, tuple(1.0 + i for i in range(20)), (1.0,))
    assert len({jitter.factor(7, True, at) for at in (1.0, 1.1, 1.4999)}) == 1
    assert len({jitter.factor(worker, True, 1.0) for worker in range(40)}) > 10
    drawn = [jitter.factor(7, True, 0.5 * window) for window in range(2000)]
    assert all(60 < drawn.count(factor) < 140 for factor in jitter.prompts)


def test_workers_alike_share_what_comes_though_they_measure_themselves_differently() -> None:
    """One after the other, so that nobody waits: who seems fastest would get nearly everything."""
    jitter = Jitter(0.25, (0.9, 0.95, 1.0, 1.05, 1.1), (1.0,))
    requests = [SimRequest(0.4 * n, 100 + 37 * n % 900, 2) for n in range(120)]
    workers = simulate(split(3, 1, jitter=jitter), requests).workers
    computed = [workers[f"p{i}"].prefill_tokens for i in range(3)]
    assert min(computed) > 0.8 * max(computed)


def test_a_rested_worker_is_told_from_a_busy_one() -> None:
    cold = Slowdown(9.0, 0.0, 0.0, 0.0, 0.0, rested_prompts_s=0.1)
    spec = ClusterSpec((worker("a", Role.DECODE), worker("b", Role.DECODE)), 1 << 16, LinkSpec(1e9), slowdown=cold)
    first, second, later = simulate(
        spec, [SimRequest(0.0, 100, 1), SimRequest(0.001, 100, 1), SimRequest(1.0, 100, 1)]
    ).requests.ttft_s
    alone_s = BASE_S + 100 * TOKEN_S
    assert (first, second, later) == (pytest.approx(alone_s), pytest.approx(alone_s + 0.1), pytest.approx(alone_s))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ClusterSpec, list[SimRequest], list[ClusterEvent]]:
    blocks = draw(st.sampled_from([40, 64, 512]))
    roles = [Role.PREFILL] * draw(st.integers(0, 2)) + [Role.DECODE] * draw(st.integers(1, 2))
    caching = draw(st.booleans())
    workers = tuple(worker(f"w{i}", role, num_blocks=blocks, caching=caching) for i, role in enumerate(roles))
    spec = ClusterSpec(
        workers, 1 << 14, LinkSpec(draw(st.sampled_from([1e6, 1e9])), 1e-4),
        Delays(0.001, draw(st.sampled_from([0.0, 0.002])), 1e-4, 1e-4),
        RoutingConfig(local_prefill_max_tokens=draw(st.sampled_from([0, 50]))), round_robin=draw(st.booleans()),
        slowdown=draw(st.sampled_from([None, Slowdown(2.0, 0.3, 0.1, 0.2, 0.4, 0.003)])),
        warming=draw(st.sampled_from([None, Warming(0.002, 0.7)])),
        jitter=draw(st.sampled_from([None, Jitter(0.01, (0.9, 1.2), (0.8, 1.0, 2.0))])),
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrivals = np.cumsum(rng.exponential(draw(st.sampled_from([0.002, 0.05])), draw(st.integers(1, 40))))
    requests = [
        SimRequest(
            float(at), int(rng.integers(1, 500)), int(rng.integers(1, 60)),
            tuple(int(i) for i in rng.integers(0, 3, 2)) if caching else (), 64,
            deadline_s=float(rng.choice([0.05, 1.0, np.inf])),
        )
        for at in arrivals
    ]  # fmt: skip
    happenings: list[ClusterEvent] = []
    if draw(st.booleans()):
        name = draw(st.sampled_from([w.worker_id for w in workers]))
        happenings = [WorkerDown(draw(st.floats(0.0, 1.0)), name), WorkerUp(draw(st.floats(1.0, 2.0)), name)]
    return spec, requests, happenings


@settings(max_examples=150, deadline=None)
@given(cases())
def test_nothing_is_lost_and_nothing_is_left(
    case: tuple[ClusterSpec, list[SimRequest], list[ClusterEvent]],
) -> None:
    """`simulate` itself checks that every request ended and every block is free; here: what was served is whole."""
    spec, requests, happenings = case
    result = simulate(spec, requests, happenings)
    rows = result.requests
    served = rows.outcome == Outcome.FINISHED
    wanted = np.array([request.output_tokens for request in requests])
    assert (rows.output_tokens[served] == wanted[served]).all()
    phases = rows.queue_s + rows.prefill_s + rows.transfer_s + rows.decode_wait_s + rows.decode_s
    np.testing.assert_allclose(phases[served], rows.e2e_s[served], atol=1e-9)
    assert (phases[served] > 0).all() and (rows.ttft_s[served] > 0).all()
    if not happenings and all(np.isinf(request.deadline_s) for request in requests):
        assert served.all() or result.errors


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_same_again_is_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests = [
        SimRequest(float(at), int(rng.integers(1, 500)), int(rng.integers(1, 60)))
        for at in np.cumsum(rng.exponential(0.01, 30))
    ]
    one, two = simulate(split(2, 2), requests), simulate(split(2, 2), requests)
    np.testing.assert_array_equal(one.requests.e2e_s, two.requests.e2e_s)
