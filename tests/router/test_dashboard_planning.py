"""What a planner is told: recent requests as columns, bounded, and workers as they measured themselves."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from pdserve.clock import ManualClock
from pdserve.planning_format import FORMAT, KEY, PATH
from pdserve.sampling import FinishReason
from pdserve.slo import Slo, Timing
from router.core.messages import BlockCounts, Histogram, StatusReport, WorkerIdentity
from router.dashboard import Activity, LiveView, WorkerState
from router.dashboard.planning import MAX_REQUESTS, WINDOW_S, RecentRequests
from router.dashboard.routes import Dashboard
from router.generation import FrontDesk
from router.http_front import build_app, serve_http
from router.record import Outcome, Predicted, RequestRecord
from scheduling.latency import LatencyCoefficients
from scheduling.routing import Role, RoutingConfig

NOW_S = 50_000.0  # the router's clock
UNIX_S = 1.7e9
COEFFICIENTS = LatencyCoefficients(0.01, 2e-5, 1e-4, 1e-8)
IDENTITY = WorkerIdentity("prefill-0", b"", Role.PREFILL, "cpu", 1, "", b"", 100, 16, 4096, 64, 512, 2048, 1000)


def record_of(lasted_s: float = 0.2, **changes: object) -> RequestRecord:
    timing = Timing(0.0, 0.1, 0.0, 0.0, 0.0, 0.1, 0.01, "prefill-0", "decode-0", 1)
    record = RequestRecord(
        "secret-id", "secret-tenant", 0, Slo(), 600.0, None, Outcome.FINISHED, FinishReason.LENGTH, None, None,
        100, 10, 4, UNIX_S, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, lasted_s, timing, Predicted(), None, None, None, None,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def recent(*ends: tuple[float, RequestRecord], started_s: float = NOW_S - 2 * WINDOW_S) -> RecentRequests:
    """Of records, each with when it ended."""
    found = RecentRequests(started_s)
    for ended_s, record in ends:
        found.add(record, ended_s)
    return found


def status_of(num_sequences: float) -> StatusReport:
    """After four steps with so many in all."""
    histograms = (Histogram("batch_size", (), (1.0,), (2, 2), num_sequences),)
    return StatusReport(BlockCounts(), 0, 0, 0, 0, COEFFICIENTS, (), histograms)


class Cluster:
    """One worker that measured itself, and one that is down."""

    num_sequences = 6.0

    def workers(self) -> list[WorkerState]:
        return [
            WorkerState("prefill-0", "prefill", "cpu", True, status_of(self.num_sequences), identity=IDENTITY),
            WorkerState("decode-0", "decode", "cpu", False),
        ]

    def activity(self) -> Activity:
        return Activity(0, 0)

    def running_since_s(self) -> list[float]:
        return [40.0]

    def is_ready(self) -> bool:
        return True

    def routing(self) -> RoutingConfig:
        return RoutingConfig(local_prefill_max_tokens=32)


def test_arrivals_are_in_order_and_lengths_in_the_order_of_end():
    """What still runs came, too; how long it will be nobody knows."""
    ends = [(NOW_S - 2, record_of(1.0, prompt_tokens=200)), (NOW_S - 1, record_of(4.0))]
    columns = recent(*ends).columns(NOW_S, UNIX_S, [NOW_S - 1.5, NOW_S - 2000.0])
    assert columns["arrival_s"] == [WINDOW_S - 5, WINDOW_S - 3, WINDOW_S - 1.5]
    assert columns["prompt_tokens"] == [200, 100] and columns["completion_tokens"] == [10, 10]
    assert columns["cached_tokens"] == [4, 4]
    assert (columns["num_running"], columns["oldest_running_s"]) == (2, 2000.0)
    assert columns["since_unix_s"] == UNIX_S - WINDOW_S and columns["window_s"] == WINDOW_S


def test_requests_whose_output_nobody_knows_are_counted_alone():
    """Refused and failed ones; one whose client left was work until then."""
    lost = [record_of(outcome=outcome, completion_tokens=0) for outcome in (Outcome.REJECTED, Outcome.CANCELLED)]
    cut = [record_of(outcome=outcome) for outcome in (Outcome.FAILED, Outcome.DEADLINE)]
    ends = [(NOW_S - 1, one) for one in (*lost, *cut, record_of(outcome=Outcome.CANCELLED))]
    columns = recent(*ends).columns(NOW_S, UNIX_S, [])
    assert columns["num_unknown"] == 4 and columns["completion_tokens"] == [10]
    assert columns["more_unknown"] is False and len(columns["arrival_s"]) == 1


def test_what_came_before_the_window_counts_with_its_length_alone():
    ends = [(NOW_S - WINDOW_S - 1, record_of()), (NOW_S - WINDOW_S + 1, record_of(5.0)), (NOW_S - 1, record_of(1.0))]
    columns = recent(*ends).columns(NOW_S, UNIX_S, [])
    assert columns["arrival_s"] == [WINDOW_S - 2] and len(columns["prompt_tokens"]) == 2
    young = recent((NOW_S - 4, record_of(1.0)), started_s=NOW_S - 10).columns(NOW_S, UNIX_S, [])
    assert young["window_s"] == 10.0 and young["arrival_s"] == [5.0]


def test_the_ring_is_bounded_and_the_window_no_longer_than_it_remembers():
    """The oldest entry came long ago; of what came after it and ended before it nothing is left."""
    forgotten = [(NOW_S - 500 + 0.01 * number, record_of()) for number in range(1000)]
    kept = [(NOW_S - 400, record_of(450.0)), *((NOW_S - 300, record_of(1.0)) for _ in range(MAX_REQUESTS - 1))]
    failed = [(NOW_S - 1, record_of(outcome=Outcome.FAILED)) for _ in range(MAX_REQUESTS + 10)]
    columns = recent(*forgotten, *kept, *failed).columns(NOW_S, UNIX_S, [])
    assert columns["window_s"] == 400.0 and len(columns["prompt_tokens"]) == MAX_REQUESTS
    assert columns["arrival_s"] == [99.0] * (MAX_REQUESTS - 1)
    assert columns["num_unknown"] == MAX_REQUESTS and columns["more_unknown"] is True


def test_a_full_ring_of_old_failures_has_forgotten_none_that_matter():
    failed = [(NOW_S - WINDOW_S - 1, record_of(outcome=Outcome.FAILED)) for _ in range(MAX_REQUESTS)]
    columns = recent(*failed, (NOW_S - 1, record_of(outcome=Outcome.FAILED))).columns(NOW_S, UNIX_S, [])
    assert columns["num_unknown"] == 1 and columns["more_unknown"] is False


def test_the_answer_has_targets_workers_and_no_names_of_clients():
    clock = ManualClock(0.0)
    view = LiveView({"default": Slo("default", 0.5, 0.05)}, "tiny", clock)
    clock.advance(50.0)
    view.record(record_of())
    facts = view.planning(Cluster())
    assert facts[KEY] == FORMAT and facts["slo"] == {"ttft_s": 0.5, "tpot_s": 0.05}
    assert facts["local_prefill_max_tokens"] == 32
    up, down = facts["workers"]
    assert up["latency"]["per_prefill_token_s"] == 2e-5 and up["num_blocks"] == 100 and up["mean_sequences"] == 1.5
    assert down == {"id": "decode-0", "role": "decode", "device": "cpu", "up": False}
    assert facts["requests"]["arrival_s"] == [40.0, 49.8] and facts["requests"]["oldest_running_s"] == 10.0
    assert "secret" not in json.dumps(facts)


def test_numbers_that_cannot_be_are_not_known():
    """A worker's mean over its steps; its coefficients are looked at where they come in."""
    view, cluster = LiveView({"default": Slo()}, "tiny", ManualClock(0.0)), Cluster()
    for wrong in (math.nan, math.inf, -1.0):
        cluster.num_sequences = wrong
        facts = view.planning(cluster)
        assert facts["workers"][0]["mean_sequences"] is None and json.dumps(facts, allow_nan=False)


def test_a_jump_of_the_wall_clock_changes_no_window(monkeypatch):
    clock = ManualClock(0.0)
    view = LiveView({"default": Slo()}, "tiny", clock)
    clock.advance(50.0)
    view.record(record_of())
    now = time.time()
    monkeypatch.setattr("router.dashboard.live.time.time", lambda: now - 3600.0)
    requests = view.planning(Cluster())["requests"]
    assert requests["arrival_s"] == [40.0, 49.8] and requests["since_unix_s"] == pytest.approx(now - 3650.0)


@pytest.fixture
def open_planning(open_desk: Callable[..., FrontDesk]) -> Callable[..., object]:
    """An async context manager: the HTTP door with a dashboard whose clock stands still."""

    @asynccontextmanager
    async def door(clock: ManualClock) -> AsyncIterator[tuple[LiveView, httpx.AsyncClient]]:
        desk, view = open_desk(), LiveView({"default": Slo()}, "tiny", clock)
        dashboard = Dashboard(view, Cluster(), clock)
        front = await serve_http(build_app(desk, dashboard.routes), "127.0.0.1", 0)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}", timeout=10) as client:
                yield view, client
        finally:
            await dashboard.close()
            await front.stop(1)
            desk.close()

    return door


def test_the_route_answers_once_a_second(open_planning):
    """Thousands of rows are made into text for all who ask within a second."""

    async def run():
        clock = ManualClock(100.0)
        async with open_planning(clock) as (view, http):
            found = [(await http.get(PATH)).json()]
            view.record(record_of())
            found.append((await http.get(PATH)).json())
            clock.advance(1.0)
            answer = await http.get(PATH)
            return [*found, answer.json()], answer.headers["cache-control"]

    found, caching = asyncio.run(run())
    assert [len(one["requests"]["prompt_tokens"]) for one in found] == [0, 0, 1]
    assert caching == "no-store"
