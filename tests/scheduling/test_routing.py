"""Routing picks live workers that fit, the best by prediction, and spreads equals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.errors import NoWorker, PromptTooLong, QueueFull
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import RequestView, Role, RoutingConfig, RoutingPolicy, WorkerLoadView
from scheduling.routing_policies import LeastPredictedLatency, RoundRobin

KNOWN = LatencyModel(LatencyCoefficients(0.001, 0.001, 0.001, 0.0))
UNKNOWN = LatencyModel(LatencyCoefficients())
REQUEST = RequestView(prompt_tokens=100, max_tokens=50, deadline_left_s=60.0)


def worker(name: str, role: Role = Role.DECODE, **changes: object) -> WorkerLoadView:
    idle = WorkerLoadView(
        worker_id=name, role=role, alive=True, num_blocks=100, block_size=16, free_blocks=100, promised_blocks=0,
        num_sequences=0, uncomputed_tokens=0, chunk_tokens=512, latency=UNKNOWN,
    )  # fmt: skip
    return replace(idle, **changes)  # type: ignore[arg-type]


VIEWS = st.lists(
    st.builds(
        worker,
        st.just("w"),
        st.sampled_from(Role),
        alive=st.booleans(),
        num_blocks=st.integers(1, 200),
        free_blocks=st.integers(0, 200),
        promised_blocks=st.integers(0, 50),
        num_sequences=st.integers(0, 64),
        uncomputed_tokens=st.integers(0, 10_000),
        latency=st.sampled_from([UNKNOWN, KNOWN]),
    ),
    max_size=8,
).map(lambda views: [replace(view, worker_id=f"w{i}") for i, view in enumerate(views)])


@pytest.mark.parametrize("policy_class", [LeastPredictedLatency, RoundRobin])
@given(VIEWS, st.integers(1, 3000), st.floats(0.001, 100.0), st.integers(0, 200))
def test_only_live_workers_that_fit_are_chosen(
    policy_class: type[LeastPredictedLatency] | type[RoundRobin],
    views: list[WorkerLoadView],
    prompt: int,
    deadline: float,
    local: int,
) -> None:
    """Roles are right, the pool can hold the prompt, the deadline can be met; or the refusal is the right one."""
    by_id = {view.worker_id: view for view in views}
    live_decode = [view for view in views if view.alive and view.role is Role.DECODE]
    policy: RoutingPolicy = policy_class(RoutingConfig(local_prefill_max_tokens=local))
    try:
        placement = policy.choose(RequestView(prompt, 10, deadline), views, 0.0)
    except NoWorker:
        assert not live_decode
        return
    except PromptTooLong:
        assert live_decode and all(view.num_blocks * 16 <= prompt for view in live_decode)
        return
    except QueueFull as error:
        assert error.retry_after_s is not None and error.retry_after_s > 0
        return
    decode = by_id[placement.decode_worker]
    assert decode.alive and decode.role is Role.DECODE and decode.num_blocks * 16 > prompt
    assert placement.predicted_ttft_s <= deadline
    if placement.prefill_worker is None:
        able = [v for v in views if v.alive and v.role is Role.PREFILL and v.num_blocks * 16 >= prompt]
        assert prompt <= local or not able  # nothing is cached
    else:
        prefill = by_id[placement.prefill_worker]
        assert prefill.alive and prefill.role is Role.PREFILL
        assert prompt > local or policy_class is LeastPredictedLatency


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 60))
def test_equal_workers_share_equally(num_prefill: int, num_decode: int, requests: int) -> None:
    """What is placed is what is counted, and no two workers of a role differ by more than one."""
    views = [worker(f"p{i}", Role.PREFILL, num_blocks=10_000) for i in range(num_prefill)]
    views += [worker(f"d{i}", num_blocks=10_000, free_blocks=10_000) for i in range(num_decode)]
    policy = LeastPredictedLatency()
    loads: Counter[str] = Counter({view.worker_id: 0 for view in views})
    for _ in range(requests):
        current = [
            replace(
                view,
                num_sequences=loads[view.worker_id],
                uncomputed_tokens=100 * loads[view.worker_id] if view.role is Role.PREFILL else 0,
                free_blocks=10_000 - 7 * loads[view.worker_id],
            )
            for view in views
        ]
        placement = policy.choose(REQUEST, current, 0.0)
        assert placement.prefill_worker is not None
        loads[placement.prefill_worker] += 1
        loads[placement.decode_worker] += 1
    for role in "pd":
        counts = [count for name, count in loads.items() if name.startswith(role)]
        assert sum(counts) == requests
        assert max(counts) - min(counts) <= 1


def test_prefill_goes_where_token_one_comes_first() -> None:
    """A faster worker with a longer queue wins while its prediction is lower."""
    fast = LatencyModel(LatencyCoefficients(0.001, 0.0001, 0.0, 0.0))
    views = [
        worker("slow", Role.PREFILL, latency=KNOWN),
        worker("fast", Role.PREFILL, latency=fast, uncomputed_tokens=300),
        worker("d"),
    ]
    placement = LeastPredictedLatency().choose(REQUEST, views, 0.0)
    assert placement.prefill_worker == "fast"
    assert placement.predicted_ttft_s == pytest.approx(0.041)
    assert placement.predicted_prefill_s == pytest.approx(0.011)
    views[1] = replace(views[1], uncomputed_tokens=3000)
    assert LeastPredictedLatency().choose(REQUEST, views, 0.0).prefill_worker == "slow"


def test_a_worker_of_which_nothing_is_known_counts_as_fast_as_the_others() -> None:
    """It is neither flooded, as if it were infinitely fast, nor left without work."""
    fast, slow = (LatencyModel(LatencyCoefficients(base_s, 0.0, 0.0, 0.0)) for base_s in (0.01, 0.05))
    known = worker("known", Role.PREFILL, latency=fast, uncomputed_tokens=100)
    slower = worker("slower", Role.PREFILL, latency=slow)
    new = worker("new", Role.PREFILL, latency=UNKNOWN)
    policy = LeastPredictedLatency()
    placed = policy.choose(REQUEST, [known, new, worker("d")], 0.0)
    assert placed.prefill_worker == "new" and placed.predicted_ttft_s > 0.0
    busy = worker("new", Role.PREFILL, latency=UNKNOWN, uncomputed_tokens=5000)
    assert policy.choose(REQUEST, [known, busy, worker("d")], 0.0).prefill_worker == "known"
    assert policy.choose(REQUEST, [known, slower, busy, worker("d")], 0.0).prefill_worker == "known"


def test_decode_prefers_room_then_fewest_sequences() -> None:
    """Room for prompt and growth counts before anything else; 100 + 50 tokens are 10 blocks."""
    full = worker("full", num_sequences=0, free_blocks=12, promised_blocks=4)
    busy = worker("busy", num_sequences=9, free_blocks=50)
    calm = worker("calm", num_sequences=3, free_blocks=20)
    policy = LeastPredictedLatency()
    for _ in range(4):
        assert policy.choose(REQUEST, [full, busy, calm], 0.0).decode_worker == "calm"
        assert policy.choose(REQUEST, [full, busy], 0.0).decode_worker == "busy"
        assert policy.choose(REQUEST, [full], 0.0).decode_worker == "full"


def test_without_prefill_workers_the_decode_worker_computes() -> None:
    """Colocated: the one that gets to the prompt first."""
    queue = worker("a", num_sequences=1, uncomputed_tokens=900, latency=KNOWN)
    views = [queue, worker("b", num_sequences=5, latency=KNOWN)]
    placement = LeastPredictedLatency().choose(REQUEST, views, 0.0)
    assert (placement.prefill_worker, placement.decode_worker) == (None, "b")


def test_a_colocated_worker_with_many_decodes_gets_fewer_prompts() -> None:
    """Each step towards token 1 carries them, and their context, though no prompt is ahead."""
    for busy in ({"num_sequences": 200}, {"num_sequences": 3, "free_blocks": 10}):
        reads = LatencyModel(LatencyCoefficients(0.01, 0.0001, 0.0001, 0.00001))
        views = [worker("busy", latency=reads, **busy), worker("calm", num_sequences=4, latency=reads)]
        policy = LeastPredictedLatency()
        assert {policy.choose(REQUEST, views, 0.0).decode_worker for _ in range(4)} == {"calm"}


def test_a_colocated_worker_with_the_prefix_is_chosen_until_too_many_wait_there() -> None:
    """The prompt costs 0.1 s, cached 0.02, and each sequence adds a tenth of a millisecond to every step."""
    reads = LatencyModel(LatencyCoefficients(0.01, 0.001, 0.0001, 0.0))
    cached = replace(REQUEST, cached_tokens={"has": 80})
    for sequences, queued, wins in ((5, 0, "has"), (20, 0, "has"), (20, 400, "d"), (2000, 0, "d")):
        has = worker("has", num_sequences=sequences, uncomputed_tokens=queued, latency=reads)
        views = [has, worker("d", num_sequences=5, latency=reads)]
        policy = LeastPredictedLatency()
        assert {policy.choose(cached, views, 0.0).decode_worker for _ in range(4)} == {wins}


def test_a_colocated_worker_that_is_late_is_not_chosen_however_light_its_burden() -> None:
    """Or a request would be refused that another could serve in time; late everywhere, it is refused."""
    light = worker("light", uncomputed_tokens=20, latency=KNOWN)
    views = [light, worker("soon", num_sequences=9, latency=KNOWN)]
    policy = LeastPredictedLatency()
    for deadline_s, name in ((60.0, "light"), (0.11, "soon")):
        request = replace(REQUEST, deadline_left_s=deadline_s)
        assert {policy.choose(request, views, 0.0).decode_worker for _ in range(4)} == {name}
    with pytest.raises(QueueFull, match=r"predicted in 0\.101 s"):
        policy.choose(replace(REQUEST, deadline_left_s=0.05), views, 0.0)


def test_a_prompt_not_worth_the_trip_stays_local() -> None:
    """Only when configured."""
    views = [worker("p", Role.PREFILL), worker("d")]
    assert LeastPredictedLatency().choose(REQUEST, views, 0.0).prefill_worker == "p"
    assert local(100).choose(REQUEST, views, 0.0).prefill_worker is None


def local(tokens: int) -> LeastPredictedLatency:
    return LeastPredictedLatency(RoutingConfig(local_prefill_max_tokens=tokens))


def test_a_prompt_stays_on_a_decode_worker_that_lacks_little_of_it() -> None:
    """80 of 100 tokens are on one, 60 on another; a prefill worker has them all but one."""
    cached = replace(REQUEST, cached_tokens={"has": 80, "some": 60, "p": 99})
    views = [worker("p", Role.PREFILL), worker("d"), worker("some"), worker("has", num_sequences=3)]
    for limit, wins in ((0, None), (19, None), (20, "has"), (39, "has"), (40, "some"), (100, "some")):
        for policy in (local(limit), local(limit)):
            placement = policy.choose(cached, views, 0.0)
            assert placement.prefill_worker == ("p" if wins is None else None), limit
            assert wins in (None, placement.decode_worker), limit
            computing = placement.prefill_worker or placement.decode_worker
            assert placement.cached_tokens == cached.cached_tokens.get(computing, 0)


def test_who_has_the_prefix_but_no_room_for_the_rest_does_not_get_it() -> None:
    """100 + 50 tokens are 10 blocks; the prompt then goes the normal way, though everybody lacks room."""
    cached = replace(REQUEST, cached_tokens={"has": 80})
    for free, promised, wins in ((10, 0, None), (9, 0, "p"), (12, 3, "p")):
        full = worker("has", free_blocks=free, promised_blocks=promised)
        assert local(20).choose(cached, [worker("p", Role.PREFILL), full, worker("d")], 0.0).prefill_worker == wins
        alone = local(20).choose(cached, [worker("p", Role.PREFILL), full], 0.0)
        assert (alone.prefill_worker, alone.decode_worker) == (wins, "has")


def test_a_decode_worker_under_load_is_not_chosen_for_what_it_has() -> None:
    """The trip is 0.1 s to token 1, then steps with little in them; the longer the queue for it, the more is borne."""
    reads = LatencyModel(LatencyCoefficients(0.01, 0.001, 0.0001, 0.0))
    cached = replace(REQUEST, cached_tokens={"has": 80})
    for sequences, uncomputed, queue, wins in (
        (0, 0, 0, None), (30, 0, 0, None), (80, 0, 0, "p"), (0, 200, 0, "p"),
        (80, 0, 900, None), (0, 200, 900, None),
    ):  # fmt: skip
        has = worker("has", num_sequences=sequences, uncomputed_tokens=uncomputed, latency=reads)
        views = [worker("p", Role.PREFILL, uncomputed_tokens=queue, latency=reads), has, worker("d", latency=reads)]
        assert local(20).choose(cached, views, 0.0).prefill_worker == wins, (sequences, uncomputed, queue)


def test_a_prompt_does_not_stay_where_it_would_be_late_nor_travel_to_be() -> None:
    cached = replace(REQUEST, cached_tokens={"has": 80, "p": 10})
    idle = [worker("p", Role.PREFILL, latency=KNOWN), worker("has", latency=KNOWN), worker("d", latency=KNOWN)]
    late_here = [idle[0], worker("has", latency=KNOWN, uncomputed_tokens=75), idle[2]]
    late_there = [replace(idle[0], uncomputed_tokens=20), worker("has", latency=KNOWN, num_sequences=60), idle[2]]
    for deadline_s, views, wins in (
        (60.0, late_here, None), (0.0955, late_here, "p"), (60.0, late_there, "p"), (0.105, late_there, None),
    ):  # fmt: skip
        request = replace(cached, deadline_left_s=deadline_s)
        assert local(20).choose(request, views, 0.0).prefill_worker == wins, (deadline_s, wins)


def test_a_wait_beyond_the_deadline_is_refused_with_a_delay() -> None:
    """Better now than after the work."""
    views = [worker("p", Role.PREFILL, latency=KNOWN, uncomputed_tokens=10_000), worker("d")]
    with pytest.raises(QueueFull, match="the deadline is in 5") as caught:
        LeastPredictedLatency().choose(replace(REQUEST, deadline_left_s=5.0), views, 0.0)
    assert caught.value.retry_after_s == pytest.approx(5.12, abs=0.02)


def test_a_cached_prefix_draws_a_prompt_until_waiting_costs_more_than_computing_it_again() -> None:
    """80 of 100 tokens are on one worker: with a queue of fewer it is the better one still."""
    cached = replace(REQUEST, cached_tokens={"has": 80})
    views = [worker("has", Role.PREFILL, latency=KNOWN), worker("p", Role.PREFILL, latency=KNOWN), worker("d")]
    for queued, wins in ((0, "has"), (79, "has"), (81, "p"), (5000, "p")):
        views[0] = replace(views[0], uncomputed_tokens=queued)
        placement = LeastPredictedLatency().choose(cached, views, 0.0)
        assert placement.prefill_worker == wins
        assert placement.cached_tokens == (80 if wins == "has" else 0)
        own = 100 - placement.cached_tokens
        assert placement.predicted_prefill_s == pytest.approx(0.001 + 0.001 * own)
        assert placement.predicted_ttft_s == pytest.approx(0.001 + 0.001 * (own + (queued if wins == "has" else 0)))


def test_without_a_latency_model_a_prefix_counts_for_its_tokens() -> None:
    """It cannot drown its worker; at equal work the cached one wins, then who holds fewer sequences."""
    cached = replace(REQUEST, cached_tokens={"has": 80})
    for queued, sequences, wins in ((0, 9, "has"), (79, 9, "has"), (80, 9, "has"), (81, 0, "p")):
        has = worker("has", Role.PREFILL, uncomputed_tokens=queued, num_sequences=sequences)
        for views in ([has, worker("p", Role.PREFILL)], [worker("p", Role.PREFILL), has]):
            assert LeastPredictedLatency().choose(cached, [*views, worker("d")], 0.0).prefill_worker == wins


def test_a_prefix_on_a_decode_worker_is_worth_less_than_a_sequence() -> None:
    """Room, then fewest sequences, then the prefix, then most room."""
    cached = replace(REQUEST, cached_tokens={"has": 80})
    for changes, wins in (
        ({"free_blocks": 50}, "has"),
        ({"free_blocks": 9}, "d"),
        ({"num_sequences": 1}, "d"),
    ):
        views = [worker("p", Role.PREFILL), worker("has", **changes), worker("d")]
        assert {LeastPredictedLatency().choose(cached, views, 0.0).decode_worker for _ in range(3)} == {wins}


@pytest.mark.parametrize("num_prefill", [0, 1])
@pytest.mark.parametrize(("factor", "shares"), [(1.01, True), (1.1, True), (1.2, False), (2.0, False)])
def test_who_seems_a_little_faster_does_not_get_everything(num_prefill: int, factor: float, shares: bool) -> None:
    """Idle workers go round as far as what they measured of themselves can tell; a faster one is preferred."""
    role = Role.PREFILL if num_prefill else Role.DECODE
    slower = LatencyModel(LatencyCoefficients(0.001 * factor, 0.001 * factor, 0.001 * factor, 0.0))
    views = [
        worker("slower", role, latency=slower),
        worker("faster", role, latency=KNOWN),
        *[worker("d")] * num_prefill,
    ]
    policy = LeastPredictedLatency()
    placed = [policy.choose(REQUEST, views, 0.0) for _ in range(10)]
    computing = Counter(placement.prefill_worker or placement.decode_worker for placement in placed)
    assert computing["faster"] == (5 if shares else 10)


def test_a_worker_that_seems_as_fast_is_none_where_the_deadline_tells_them_apart() -> None:
    """Or a request would be refused that another could serve in time."""
    slower = LatencyModel(LatencyCoefficients(0.001, 0.00105, 0.0, 0.0))
    views = [worker("p", Role.PREFILL, latency=KNOWN), worker("slower", Role.PREFILL, latency=slower), worker("d")]
    policy = LeastPredictedLatency()
    for deadline_s, names in ((60.0, {"p", "slower"}), (0.103, {"p"})):
        request = replace(REQUEST, deadline_left_s=deadline_s)
        assert {policy.choose(request, views, 0.0).prefill_worker for _ in range(4)} == names


def test_of_those_that_seem_equally_fast_the_one_with_least_to_do_is_chosen() -> None:
    """Though another is predicted a few per cent earlier."""
    slower = LatencyModel(LatencyCoefficients(0.001, 0.00105, 0.0, 0.0))
    views = [worker("p", Role.PREFILL, latency=KNOWN, uncomputed_tokens=4),
             worker("less", Role.PREFILL, latency=slower, uncomputed_tokens=3), worker("d")]  # fmt: skip
    assert {LeastPredictedLatency().choose(REQUEST, views, 0.0).prefill_worker for _ in range(4)} == {"less"}
