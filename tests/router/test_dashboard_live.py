"""The live view: windows, percentiles, bounds, workers and links, with a clock of the test's own."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from pdserve.clock import ManualClock
from pdserve.sampling import FinishReason
from pdserve.slo import Blame, Slo, Timing, Verdict
from router.core.messages import BlockCounts, Histogram, Sample, StatusReport
from router.dashboard import Activity, LiveView, Planned, WorkerState
from router.dashboard.links import MAX_LINKS, Links
from router.dashboard.live import MAX_CLASSES, MAX_MISSES, MAX_RECENT
from router.dashboard.pools import MAX_EVENTS
from router.dashboard.sketch import NUM_BINS, bin_of, middle_of, quantiles
from router.record import Outcome, Predicted, RequestRecord, Transfer
from scheduling.latency import LatencyCoefficients

SLO = Slo("default", 0.5, 0.05)


def record_of(ttft_s=0.2, tpot_s=0.02, *, slo=SLO, verdict=True, request_id="r", **changes) -> RequestRecord:
    """A request that was served through the split; `verdict`: it met its SLO, or the blame, or None."""
    timing = Timing(0.05, ttft_s - 0.05, 0.01, 0.0, 9 * tpot_s, ttft_s, tpot_s, "prefill-0", "decode-0", 1)
    if verdict is True:
        verdict = Verdict(True, True, Blame.NONE)
    elif isinstance(verdict, Blame):
        verdict = Verdict(False, True, verdict)
    ended_s = ttft_s + 9 * tpot_s
    record = RequestRecord(
        request_id, "default", 0, slo, 600.0, None, Outcome.FINISHED, FinishReason.LENGTH, None, None, 100, 10, 4,
        1.7e9, 0.001, 0.05, ttft_s, 0.1, ttft_s + 0.01, ttft_s + 0.01, ended_s, timing,
        Predicted(0.0, 0.1, 0.01, 0.0, 0.02), verdict, None, None, Transfer(4096, 0, 0.02, 0.01, "shm"),
    )  # fmt: skip
    return replace(record, **changes)


def unserved(outcome: Outcome, verdict: Verdict | None) -> RequestRecord:
    timing = Timing(0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "", "", 0)
    return replace(
        record_of(verdict=verdict), outcome=outcome, timing=timing, first_token_s=None, completion_tokens=0,
        transfer=None, error_status="RESOURCE_EXHAUSTED", error="x" * 1000,
    )  # fmt: skip


def status_of(steps: int = 0, seconds: float = 0.0, **changes) -> StatusReport:
    histograms = (
        Histogram("step_seconds", (("role", "decode"),), (0.01,), (steps, 0), seconds),
        Histogram("batch_size", (("role", "decode"),), (1.0,), (0, steps), 4.0 * steps),
    )
    report = StatusReport(BlockCounts(60, 30, 10, 0, 0, 0), 2, 3, 0, 0, LatencyCoefficients(), (), histograms)
    return replace(report, **changes)


def worker(name: str, role: str, up: bool = True, **changes) -> WorkerState:
    return replace(WorkerState(name, role, "cpu", up, status_of() if up else None, 0.0, 64, 1024), **changes)


class Cluster:
    """A `ClusterSource` that a test fills."""

    def __init__(self, *workers: WorkerState) -> None:
        self.now = list(workers)
        self.does = Activity(0, 0, (0.01, 0.1), (0, 0, 0))

    def workers(self) -> list[WorkerState]:
        return self.now

    def activity(self) -> Activity:
        return self.does

    def is_ready(self) -> bool:
        return True


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


def view_of(clock: ManualClock, *slos: Slo, planned: Planned | None = None) -> LiveView:
    return LiveView({slo.slo_class: slo for slo in slos or (SLO,)}, "tiny", clock, planned)


def all_of(view: LiveView, span: str) -> dict:
    return view.snapshot(Cluster())["spans"][span]["all"]


def test_a_window_forgets_what_is_older(clock):
    """Counts leave the 15 s window, then the minute's, then the quarter of an hour's, and stay forgotten."""
    view = view_of(clock)
    for _ in range(10):
        view.record(record_of())
    clock.advance(2.0)
    assert [all_of(view, span)["requests"] for span in ("15", "60", "300", "900")] == [10, 10, 10, 10]
    clock.advance(20.0)
    assert [all_of(view, span)["requests"] for span in ("15", "60", "300", "900")] == [0, 10, 10, 10]
    clock.advance(880.0)
    assert [all_of(view, span)["requests"] for span in ("60", "300", "900")] == [0, 0, 10]
    clock.advance(10.0)
    assert all_of(view, "900")["requests"] == 0
    clock.advance(10_000.0)
    view.record(record_of())
    assert [all_of(view, span)["requests"] for span in ("15", "900")] == [1, 1]


def test_rates_are_over_the_time_that_there_was(clock):
    """A server that is two seconds old has a rate of two seconds, not of a minute."""
    view = view_of(clock)
    for _ in range(6):
        view.record(record_of())
    clock.advance(2.0)
    assert all_of(view, "60")["requests_per_s"] == 3.0
    clock.advance(58.0)
    assert all_of(view, "60")["requests_per_s"] == 0.1


def test_goodput_attainment_and_blame_count_every_end(clock):
    """Good, missed by phase, rejected; a client that left is not judged."""
    view = view_of(clock)
    for verdict in (True, True, True, Blame.PREFILL, Blame.QUEUE, Blame.QUEUE, None):
        view.record(record_of(verdict=verdict))
    view.record(unserved(Outcome.REJECTED, Verdict(False, False, Blame.QUEUE)))
    view.record(unserved(Outcome.CANCELLED, None))
    clock.advance(10.0)
    sums = all_of(view, "60")
    assert (sums["requests"], sums["judged"], sums["good"]) == (9, 7, 3)
    assert sums["attainment"] == round(3 / 7, 5) and sums["goodput_rps"] == 0.3
    assert {name: count for name, count in sums["blame"].items() if count} == {"prefill": 1, "queue": 3}
    assert sums["outcomes"] == {"finished": 7, "cancelled": 1, "deadline": 0, "failed": 0, "rejected": 1}
    assert sums["met_tpot"] == round(6 / 7, 5)
    assert sum(sums["blame"].values()) == sums["judged"] - sums["good"]


def test_percentiles_are_within_their_bins_of_the_truth():
    """Against numpy, over five orders of magnitude; sketches add up."""
    rng = random.Random(1)
    values = [rng.lognormvariate(-2.0, 1.6) for _ in range(5000)]
    halves = [np.zeros(NUM_BINS, np.uint32) for _ in range(2)]
    for index, value in enumerate(values):
        halves[index % 2][bin_of(value)] += 1
    found = quantiles(halves[0] + halves[1], (0.01, 0.5, 0.95, 0.999))
    truth = np.quantile(values, (0.01, 0.5, 0.95, 0.999), method="inverted_cdf")
    assert found == pytest.approx(list(truth), rel=0.0222)
    assert quantiles(np.zeros(NUM_BINS, np.uint32), (0.5,)) == [None]


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-4, 0.5, 999.0, 1e9])
def test_every_duration_has_a_bin(seconds):
    """Also those outside the sketch; the bin's middle is near."""
    index = bin_of(seconds)
    assert 0 <= index < NUM_BINS
    if 1e-4 < seconds < 1e3:
        assert middle_of(index) == pytest.approx(seconds, rel=0.0222)


def test_latencies_are_those_of_tokens_that_came(clock):
    """No first token: no TTFT; one token: no TPOT."""
    view = view_of(clock)
    view.record(unserved(Outcome.FAILED, Verdict(False, False, Blame.NONE)))
    assert all_of(view, "60")["ttft_s"]["p50"] is None
    view.record(record_of(0.3, completion_tokens=1))
    sums = all_of(view, "60")
    assert sums["ttft_s"]["p50"] == pytest.approx(0.3, rel=0.0222) and sums["tpot_s"]["p50"] is None


def test_classes_are_counted_apart_and_bounded(clock):
    """Unknown classes count as default; beyond the bound too."""
    many = [Slo(f"c{index}", 1.0) for index in range(40)]
    view = view_of(clock, Slo("chat", 0.5), *many)
    for name in ("chat", "chat", "c0", "c39", "never heard of"):
        view.record(record_of(slo=Slo(name, 0.5)))
    state = view.snapshot(Cluster())
    names = [one["name"] for one in state["classes"]]
    counts = [one["requests"] for one in state["spans"]["60"]["classes"]]
    assert len(names) == MAX_CLASSES and names[:3] == ["default", "chat", "c0"]
    assert counts[:3] == [2, 2, 1] and state["spans"]["60"]["all"]["requests"] == 5


def test_history_has_a_point_for_every_bucket_that_is_over(clock):
    """Five seconds each, empty ones as None, a quarter of an hour at most; numbers only grow."""
    view = view_of(clock)
    view.record(record_of(verdict=Blame.DECODE))
    clock.advance(12.0)
    view.record(record_of())
    state = view.snapshot(Cluster())["history"]
    assert [number for number, _ in state["points"]] == [200, 201]
    row = dict(zip(state["columns"], state["points"][0][1][0], strict=True))
    assert (row["requests"], row["good"], row["decode"]) == (1, 0, 1) and state["points"][1][1] is None
    clock.advance(5000.0)
    points = view.snapshot(Cluster())["history"]["points"]
    assert len(points) == 180 and points[-1][0] == int(clock.now() // 5) - 1
    assert [number for number, _ in points] == list(range(points[0][0], points[0][0] + 180))


def test_memory_is_bounded_whatever_comes(clock):
    """A hundred thousand ends with names of their own leave rings of fixed length."""
    view = view_of(clock)
    for index in range(5000):
        view.record(record_of(request_id=f"r{index}" * 100, verdict=Blame.QUEUE if index % 2 else True))
        clock.advance(0.1)
    state = view.snapshot(Cluster())
    assert len(state["misses"]) == MAX_MISSES and len(state["recent"]) == MAX_RECENT
    assert [one["n"] for one in state["misses"]] == list(range(5000, 5000 - 2 * MAX_MISSES, -2))
    assert len(json.dumps(state)) < 150_000


def test_links_are_bounded_and_show_what_moved(clock):
    """The one used longest ago is forgotten; only links between live workers are shown."""
    links = Links()
    for index in range(MAX_LINKS + 5):
        timing = replace(record_of().timing, prefill_worker=f"p{index}")
        links.add(record_of(timing=timing), clock.now())
    workers = [worker(f"p{index}", "prefill") for index in range(MAX_LINKS + 5)] + [worker("decode-0", "decode")]
    rows = links.rows(workers, clock.now())
    assert len(rows) == MAX_LINKS and "p0" not in {row["src"] for row in rows}
    assert rows[0]["recent_bytes"] == 4096 and rows[0]["bytes_per_s"] == 410_000 and rows[0]["transport"] == "shm"
    clock.advance(120.0)
    (row,) = links.rows([worker("p9", "prefill"), worker("decode-0", "decode")], clock.now())
    assert (row["transfers"], row["recent_transfers"], row["bytes_per_s"]) == (1, 0, None)
    gauge = Sample("link_bandwidth_bytes_per_second", (("dst", "decode-0"), ("src", "p9")), 5e6)
    decode = worker("decode-0", "decode", status=status_of(samples=(gauge,)))
    assert links.rows([worker("p9", "prefill"), decode], clock.now())[0]["bytes_per_s"] == 5e6
    assert links.rows([worker("p9", "prefill", up=False), decode], clock.now()) == []


def test_workers_that_go_come_and_change_are_told(clock):
    """Events newest first, bounded; a lost worker has no load and says since when."""
    view, cluster = view_of(clock), Cluster(worker("prefill-0", "prefill"), worker("decode-0", "decode"))
    view.look(cluster)
    assert view.snapshot(cluster)["events"] == []
    cluster.now = [worker("prefill-0", "decode"), worker("decode-0", "decode", up=False), worker("new", "prefill")]
    view.look(cluster)
    clock.advance(7.0)
    state = view.snapshot(cluster)
    kinds = {one["worker"]: (one["kind"], one["was"]) for one in state["events"]}
    assert kinds == {"prefill-0": ("role", "prefill"), "decode-0": ("down", None), "new": ("joined", None)}
    lost = next(row for row in state["workers"] if row["id"] == "decode-0")
    assert lost["since_s"] == 7 and not lost["up"] and "running" not in lost
    for index in range(100):
        cluster.now = [worker("decode-0", "decode", up=index % 2 == 0)]
        view.look(cluster)
    assert len(view.snapshot(cluster)["events"]) == MAX_EVENTS


def test_step_times_are_of_the_last_seconds(clock):
    """Differences of the workers' totals; a new boot begins again."""
    view, cluster = view_of(clock), Cluster()
    for look in range(30):
        cluster.now = [worker("decode-0", "decode", status=status_of(100 * look, 0.5 * look))]
        view.look(cluster)
        clock.advance(1.0)
    (row,) = view.snapshot(cluster)["workers"]
    assert (row["step_s"], row["batch"], row["running"], row["waiting"]) == (0.005, 4.0, 3, 2)
    assert row["blocks"] == [30, 10, 0, 0, 60] and row["kv_bytes"] == 102_400
    cluster.now = [worker("decode-0", "decode", status=status_of(1, 9.0))]
    view.look(cluster)
    assert view.snapshot(cluster)["workers"][0]["step_s"] is None


def test_tokens_and_gaps_are_of_the_last_looks(clock):
    """Rates from totals; gaps by their histogram."""
    view, cluster = view_of(clock), Cluster()
    view.look(cluster)
    clock.advance(2.0)
    cluster.does = Activity(4, 500, (0.01, 0.1), (50, 50, 0))
    view.look(cluster)
    activity = view.snapshot(cluster)["activity"]
    assert activity["running"] == 4 and activity["tokens_per_s"] == 250.0
    assert activity["itl_s"]["p50"] == 0.01 and activity["itl_s"]["p99"] == pytest.approx(0.0982)


def test_a_snapshot_is_plain_json_without_prompts(clock):
    """Numbers, names and times; long names are cut; nothing is NaN."""
    view = view_of(clock, planned=Planned(2, 3, "plan.json", 12.5, 0.9))
    view.record(record_of(verdict=Blame.TRANSFER))
    view.record(unserved(Outcome.REJECTED, Verdict(False, False, Blame.QUEUE)))
    state = json.loads(json.dumps(view.snapshot(Cluster()), allow_nan=False))
    rejected, missed = state["misses"]
    assert len(rejected["error"]) == 160 and rejected["ttft_s"] is None
    assert missed["phases_s"] == [0.05, 0.15, 0.01, 0.0, 0.18] and missed["predicted_s"] == [0.0, 0.1, 0.01, 0.0, 0.18]
    assert missed["at_s"]["ended"] == 0.38 and missed["transfer"]["bytes"] == 4096
    assert state["cluster"]["planned"]["goodput_rps"] == 12.5
