"""Deaths, returns and role changes in the simulator: what fails, what goes on, and that nothing is left."""

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
    LinearSteps,
    LinkSpec,
    RoleChange,
    WorkerDown,
    WorkerSpec,
    WorkerUp,
)
from placement.simulator.requests import Outcome, SimRequest
from placement.simulator.results import Change
from placement.simulator.simulate import simulate
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import Role

BASE_S, TOKEN_S = 0.004, 2e-5
STEPS = LinearSteps(LatencyModel(LatencyCoefficients(BASE_S, TOKEN_S, 5e-5, 0.0)))
CONFIG = SchedulerConfig(max_model_len=4096, max_num_seqs=16, max_num_batched_tokens=256)
MESSAGE_S = 0.01
PROMPT = 256
SLOW = LinkSpec((PROMPT // 16 << 16) / 0.1)  # a prompt in 0.1 s
FAST = LinkSpec(1e9)


def cluster(*names: str, caching: bool = False, link: LinkSpec = FAST, message_s: float = MESSAGE_S) -> ClusterSpec:
    roles = {"p": Role.PREFILL, "d": Role.DECODE}
    workers = [WorkerSpec(name, roles[name[0]], CONFIG, 256, 16, STEPS, prefix_caching=caching) for name in names]
    return ClusterSpec(tuple(workers), 1 << 16, link, Delays(message_s=message_s))


def test_a_request_whose_kv_is_committed_goes_on_when_its_prefill_worker_dies() -> None:
    """As `router/core/worker_events.py` has it: behind token 1 the decode worker's word counts."""
    spec, requests = cluster("p0", "d0", link=SLOW), [SimRequest(0.0, PROMPT, 50)]
    whole = simulate(spec, requests).requests
    first_s, committed_s = float(whole.ttft_s[0]), float(whole.ttft_s[0] + whole.transfer_s[0])  # as the router hears
    for dies_s, goes_on in (
        (first_s - 1.5 * MESSAGE_S, False),  # before token 1 is there
        (first_s - 0.5 * MESSAGE_S, False),  # token 1 is on its way, the KV is not over
        (committed_s - 1.5 * MESSAGE_S, False),  # the last of the KV moves
        (committed_s - 0.5 * MESSAGE_S, True),  # the decode worker has all; the router does not know yet
        (committed_s + MESSAGE_S, True),
    ):
        result = simulate(spec, requests, [WorkerDown(dies_s, "p0")])
        assert result.requests.outcome[0] == (Outcome.FINISHED if goes_on else Outcome.FAILED)
        assert result.errors == ({} if goes_on else {"prefill worker p0 was lost": 1})


def test_what_a_worker_said_before_it_died_still_comes() -> None:
    """The last token was on its way: the request ended well."""
    whole = simulate(cluster("d0"), [SimRequest(0.0, PROMPT, 5)])
    last_s = float(whole.requests.e2e_s[0])
    for dies_s, outcome in ((last_s - 0.5 * MESSAGE_S, Outcome.FINISHED), (last_s - 1.5 * MESSAGE_S, Outcome.FAILED)):
        result = simulate(cluster("d0"), [SimRequest(0.0, PROMPT, 5)], [WorkerDown(dies_s, "d0")])
        assert result.requests.outcome[0] == outcome


def test_a_request_sent_to_a_worker_that_has_just_died_fails_and_is_not_tried_again() -> None:
    """The router hears of a death one message later; docs/reliability.md: nothing is retried."""
    requests = [SimRequest(0.5 * MESSAGE_S, PROMPT, 5), SimRequest(2.0 * MESSAGE_S, PROMPT, 5)]
    died = WorkerDown(0.0, "d0")
    assert list(simulate(cluster("d0"), requests, [died]).requests.outcome) == [Outcome.FAILED, Outcome.REJECTED]
    again = simulate(cluster("d0"), requests, [died, WorkerUp(0.9 * MESSAGE_S, "d0")])  # before that was heard
    assert list(again.requests.outcome) == [Outcome.FAILED, Outcome.FINISHED]


def test_without_a_prefill_worker_decode_workers_compute_and_without_a_decode_worker_all_is_refused() -> None:
    requests = [SimRequest(float(i), PROMPT, 5) for i in range(6)]
    events: list[ClusterEvent] = [WorkerDown(0.5, "p0"), WorkerDown(2.5, "d0"), WorkerUp(4.5, "d0")]
    result = simulate(cluster("p0", "d0"), requests, events)
    finished, refused = Outcome.FINISHED, Outcome.REJECTED
    assert list(result.requests.outcome) == [finished, finished, finished, refused, refused, finished]
    assert result.requests.transfer_s[0] > 0.0 == result.requests.transfer_s[1] == result.requests.transfer_s[5]
    assert result.errors == {"no decode worker is up": 2}


def test_a_role_change_ends_what_it_has_and_comes_back_later() -> None:
    requests = [SimRequest(0.05 * i, PROMPT, 20) for i in range(60)]
    result = simulate(cluster("p0", "p1", "d0"), requests, [RoleChange(1.0, "p1", Role.DECODE, takes_s=0.5)])
    assert (result.requests.outcome == Outcome.FINISHED).all()
    drained, changed = result.happened
    assert (drained.at_s, drained.change, drained.role) == (1.0, Change.DRAINED, Role.DECODE)
    assert changed.change is Change.CHANGED and 1.5 <= changed.at_s < 2.0
    assert result.workers["p1"].decode_tokens > 0


def test_lanes_of_a_worker_die_and_change_as_one() -> None:
    """What has not ended on one lane holds the other back: it is one process that starts again."""
    spec = cluster("p0.0", "p0.1", "d0", "d1")
    requests = [SimRequest(0.0, PROMPT, 2), SimRequest(0.0, 3000, 2)]
    result = simulate(spec, requests, [RoleChange(0.05, "p0", Role.DECODE)])
    assert (result.requests.outcome == Outcome.FINISHED).all()
    assert result.happened[1].at_s > float(result.requests.ttft_s[1]) > 3 * float(result.requests.ttft_s[0])
    both = simulate(spec, requests, [WorkerDown(0.0, "p0"), WorkerUp(9.0, "p0"), WorkerUp(9.5, "p0")])
    assert [(one.at_s, one.change) for one in both.happened] == [(0.0, Change.DIED), (9.0, Change.STARTED)]
    assert (both.requests.outcome == Outcome.FAILED).all()


def test_a_worker_that_dies_while_it_changes_comes_up_in_its_new_role() -> None:
    requests = [SimRequest(0.05 * i, PROMPT, 20) for i in range(60)]
    change = RoleChange(0.5, "p1", Role.DECODE, takes_s=0.5)
    for dies_s in (0.5, 0.8):
        result = simulate(cluster("p0", "p1", "d0"), requests, [change, WorkerDown(dies_s, "p1"), WorkerUp(2.0, "p1")])
        assert [one.change for one in result.happened] == [Change.DRAINED, Change.DIED, Change.STARTED]
        assert result.happened[2].role is Role.DECODE and result.workers["p1"].decode_tokens > 0


def test_of_two_role_changes_the_later_counts() -> None:
    requests = [SimRequest(0.05 * i, PROMPT, 20) for i in range(60)]
    there, back = RoleChange(0.5, "p1", Role.DECODE, takes_s=0.5), RoleChange(0.7, "p1", Role.PREFILL, takes_s=0.1)
    result = simulate(cluster("p0", "p1", "d0"), requests, [there, back])
    assert [one.change for one in result.happened] == [Change.DRAINED, Change.DRAINED, Change.CHANGED]
    assert result.happened[2].role is Role.PREFILL and result.workers["p1"].decode_tokens == 0
    assert result.workers["p1"].prefill_tokens > 0


def test_an_event_of_an_unknown_worker_is_an_error() -> None:
    with pytest.raises(ValueError, match="worker d7 is not part"):
        simulate(cluster("d0"), [], [WorkerDown(1.0, "d7")])


NAMES = ("p0", "p1.0", "p1.1", "d0", "d1")
TIMES = st.floats(0.0, 1.5)
WORKERS = st.sampled_from(["p0", "p1", "d0", "d1"])
EVENTS = st.one_of(
    st.builds(WorkerDown, TIMES, WORKERS),
    st.builds(WorkerUp, TIMES, WORKERS),
    st.builds(RoleChange, TIMES, WORKERS, st.sampled_from(Role), st.floats(0.0, 0.3)),
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 0.1), st.integers(1, 900), st.integers(1, 60)), min_size=1, max_size=25),
    st.lists(EVENTS, min_size=1, max_size=8),
    st.sampled_from([0.0, 0.001, 0.05]),
    st.booleans(),
)
def test_whatever_happens_nothing_is_lost_and_nothing_is_left(
    drawn: list[tuple[float, int, int]], events: list[ClusterEvent], message_s: float, caching: bool
) -> None:
    """`simulate` checks that each request ended and nothing of it is left; what was served is whole."""
    arrivals_s = np.cumsum([gap_s for gap_s, _, _ in drawn])
    requests = [
        SimRequest(float(at_s), prompt, output, (1, 2))
        for at_s, (_, prompt, output) in zip(arrivals_s, drawn, strict=True)
    ]
    spec = replace(cluster(*NAMES, caching=caching, message_s=message_s), status_s=0.2)
    result = simulate(spec, requests, events)
    served = result.requests.outcome == Outcome.FINISHED
    wanted = np.array([request.output_tokens for request in requests])
    assert (result.requests.output_tokens[served] == wanted[served]).all()
    assert int((~served).sum()) == sum(result.errors.values())
    assert [one.at_s for one in result.happened] == sorted(one.at_s for one in result.happened)
