"""What a planner is told: recent requests as columns, bounded, and workers as they measured themselves."""

from __future__ import annotations

import asyncio
import json
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

NOW_S = 1.7e9
COEFFICIENTS = LatencyCoefficients(0.01, 2e-5, 1e-4, 1e-8)
IDENTITY = WorkerIdentity("prefill-0", b"", Role.PREFILL, "cpu", 1, "", b"", 100, 16, 4096, 64, 512, 2048, 1000)


def record_of(arrival_s: float = NOW_S, **changes: object) -> RequestRecord:
    timing = Timing(0.0, 0.1, 0.0, 0.0, 0.0, 0.1, 0.01, "prefill-0", "decode-0", 1)
    record = RequestRecord(
        "secret-id", "secret-tenant", 0, Slo(), 600.0, None, Outcome.FINISHED, FinishReason.LENGTH, None, None,
        100, 10, 4, arrival_s, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.2, timing, Predicted(), None, None, None, None,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def recent(*records: RequestRecord, started_s: float = NOW_S - 2 * WINDOW_S) -> RecentRequests:
    found = RecentRequests()
    found._started_s = started_s
    for record in records:
        found.add(record)
    return found


class Cluster:
    """One worker that measured itself, and one that is down."""

    def workers(self) -> list[WorkerState]:
        histograms = (Histogram("batch_size", (), (1.0,), (2, 2), 6.0),)
        status = StatusReport(BlockCounts(), 0, 0, 0, 0, COEFFICIENTS, (), histograms)
        return [
            WorkerState("prefill-0", "prefill", "cpu", True, status, identity=IDENTITY),
            WorkerState("decode-0", "decode", "cpu", False),
        ]

    def activity(self) -> Activity:
        return Activity(0, 0)

    def is_ready(self) -> bool:
        return True

    def routing(self) -> RoutingConfig:
        return RoutingConfig(local_prefill_max_tokens=32)


def test_requests_come_as_columns_by_arrival():
    """They are recorded as they end, which is another order."""
    columns = recent(record_of(NOW_S - 1), record_of(NOW_S - 3, prompt_tokens=200)).columns(NOW_S)
    assert columns["prompt_tokens"] == [200, 100] and columns["completion_tokens"] == [10, 10]
    assert columns["cached_tokens"] == [4, 4]
    assert columns["since_unix_s"] == NOW_S - WINDOW_S and columns["window_s"] == WINDOW_S
    assert columns["arrival_s"] == [WINDOW_S - 3, WINDOW_S - 1]


def test_requests_whose_output_nobody_knows_are_counted_alone():
    """Refused and failed ones; one whose client left was work until then."""
    lost = [record_of(outcome=outcome, completion_tokens=0) for outcome in (Outcome.REJECTED, Outcome.CANCELLED)]
    cut = [record_of(outcome=outcome) for outcome in (Outcome.FAILED, Outcome.DEADLINE)]
    columns = recent(*lost, *cut, record_of(outcome=Outcome.CANCELLED)).columns(NOW_S)
    assert columns["num_unknown"] == 4 and columns["completion_tokens"] == [10]


def test_what_came_before_the_window_is_left_out():
    columns = recent(record_of(NOW_S - WINDOW_S - 1), record_of(NOW_S - WINDOW_S + 1)).columns(NOW_S)
    assert columns["arrival_s"] == [1.0]
    young = recent(record_of(NOW_S - 5), started_s=NOW_S - 10).columns(NOW_S)
    assert young["window_s"] == 10.0 and young["arrival_s"] == [5.0]


def test_the_ring_is_bounded_and_says_how_far_back_it_goes():
    records = [record_of(NOW_S - 500 + 0.01 * number) for number in range(MAX_REQUESTS + 1000)]
    found = recent(*records, *(record_of(outcome=Outcome.FAILED) for _ in range(MAX_REQUESTS + 10)))
    columns = found.columns(NOW_S)
    assert len(columns["arrival_s"]) == MAX_REQUESTS == columns["num_unknown"]
    assert columns["window_s"] == pytest.approx(490.0) and columns["arrival_s"][0] == 0.0


def test_the_answer_has_targets_workers_and_no_names_of_clients():
    view = LiveView({"default": Slo("default", 0.5, 0.05)}, "tiny", ManualClock(0.0))
    view.record(record_of(time.time()))
    facts = view.planning(Cluster())
    assert facts[KEY] == FORMAT and facts["slo"] == {"ttft_s": 0.5, "tpot_s": 0.05}
    assert (facts["local_prefill_max_tokens"], facts["growth_tokens"]) == (32, 64)
    up, down = facts["workers"]
    assert up["latency"]["per_prefill_token_s"] == 2e-5 and up["num_blocks"] == 100 and up["mean_sequences"] == 1.5
    assert down == {"id": "decode-0", "role": "decode", "device": "cpu", "up": False}
    assert len(facts["requests"]["arrival_s"]) == 1 and "secret" not in json.dumps(facts)


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
            view.record(record_of(time.time()))
            found.append((await http.get(PATH)).json())
            clock.advance(1.0)
            answer = await http.get(PATH)
            return [*found, answer.json()], answer.headers["cache-control"]

    found, caching = asyncio.run(run())
    assert [len(one["requests"]["arrival_s"]) for one in found] == [0, 0, 1]
    assert caching == "no-store"
