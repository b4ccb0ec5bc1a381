"""What the dashboard shows: the last quarter of an hour, kept as requests end and as workers report.

    every end ── record() ──> windows, links, the last requests and misses, the lengths of recent ones
    every second ── look() ──> workers that came and went, step times, tokens
    every second that somebody watches ── snapshot() ──> one JSON-able dict
    who plans asks ── planning() ──> another

Bounded: fixed arrays for time, rings for requests and events, one entry a worker.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from pdserve import __version__
from pdserve.clock import Clock
from pdserve.slo import Blame, Slo
from router.dashboard.entries import PHASES, entries, rounded
from router.dashboard.links import Links
from router.dashboard.plan import Planned
from router.dashboard.planning import RecentRequests, planning_of
from router.dashboard.pools import Pools
from router.dashboard.rates import Rates
from router.dashboard.source import ClusterSource
from router.dashboard.summary import COLUMNS, point_of, summary_of
from router.dashboard.windows import BUCKET_S, Windows
from router.record import Outcome, RequestRecord

MAX_CLASSES = 12  # shown one by one; all others count in the first
MAX_MISSES = 30
MAX_RECENT = 16
SPANS_S = (15, 60, 300, 900)


class LiveView:
    """A `RecordSink` that can be looked at. Belongs to one event loop; nothing waits."""

    def __init__(self, slos: Mapping[str, Slo], model: str, clock: Clock, planned: Planned | None = None) -> None:
        """`slos` are the configured classes; a record of any other counts as `default`."""
        default = slos.get("default", Slo())
        self._slos = [default, *(slo for name, slo in slos.items() if name != "default")][:MAX_CLASSES]
        self._index = {slo.slo_class: index for index, slo in enumerate(self._slos)}
        self._model = model
        self._planned = planned
        self._clock = clock
        self._started_s = clock.now()
        self._windows = Windows(len(self._slos), self._started_s)
        self._links = Links()
        self._lengths = RecentRequests(self._started_s)
        self._pools = Pools()
        self._rates = Rates()
        self._points: deque[tuple[int, Any]] = deque(maxlen=round(SPANS_S[-1] / BUCKET_S))
        self._num_records = 0
        self._misses: deque[tuple[int, RequestRecord]] = deque(maxlen=MAX_MISSES)
        self._recent: deque[tuple[int, RequestRecord]] = deque(maxlen=MAX_RECENT)

    def record(self, record: RequestRecord) -> None:
        """One request ended."""
        now_s = self._clock.now()
        self._num_records += 1
        self._windows.add(self._index.get(record.slo.slo_class, 0), record, now_s)
        self._links.add(record, now_s)
        self._lengths.add(record, now_s)
        numbered = (self._num_records, record)
        if record.verdict is not None and not (record.verdict.met_ttft and record.verdict.met_tpot):
            self._misses.append(numbered)
        if record.outcome is Outcome.FINISHED:
            self._recent.append(numbered)

    def look(self, source: ClusterSource) -> None:
        """Called once a second, watched or not."""
        now_s = self._clock.now()
        self._pools.look(source.workers(), now_s)
        self._rates.look(source.activity(), now_s)

    def snapshot(self, source: ClusterSource) -> dict[str, Any]:
        """Everything, in sections that change at their own pace."""
        now_s = self._clock.now()
        workers, activity = source.workers(), source.activity()
        self._catch_up(now_s)
        return {
            "cluster": self._cluster(source.is_ready()),
            "time": {"unix_s": round(time.time(), 3), "up_s": round(now_s - self._started_s)},
            "classes": [{"name": slo.slo_class, "ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s} for slo in self._slos],
            "spans": {str(span): summary_of(self._windows.last(span, now_s)) for span in SPANS_S},
            "activity": {"running": activity.running} | self._rates.summary(),
            "history": {"bucket_s": BUCKET_S, "columns": COLUMNS, "points": [list(point) for point in self._points]},
            "workers": self._pools.rows(workers, now_s),
            "links": self._links.rows(workers, now_s),
            "events": self._pools.events(),
            "misses": entries(self._misses),
            "recent": entries(self._recent),
        }

    def planning(self, source: ClusterSource) -> dict[str, Any]:
        """What a planner needs; some thousand requests, so not for every second."""
        workers, now_s = source.workers(), self._clock.now()
        rates = [row["bytes_per_s"] for row in self._links.rows(workers, now_s) if row["bytes_per_s"]]
        requests = self._lengths.columns(now_s, time.time(), source.running_since_s())
        return planning_of(self._model, self._slos[0], source.routing(), workers, rates, requests)

    def _cluster(self, is_ready: bool) -> dict[str, Any]:
        planned = self._planned
        return {
            "model": self._model,
            "version": __version__,
            "ready": is_ready,
            "kept": {"misses": MAX_MISSES, "recent": MAX_RECENT},
            "has_slo": any(slo.ttft_s is not None or slo.tpot_s is not None for slo in self._slos),
            "phases": PHASES,
            "blames": [blame.value for blame in Blame],
            "planned": None if planned is None else {
                "prefill": planned.prefill,
                "decode": planned.decode,
                "plan": planned.plan,
                "goodput_rps": rounded(planned.goodput_rps),
                "attainment": rounded(planned.attainment),
                "ttft_s": planned.ttft_s,
                "tpot_s": planned.tpot_s,
                "ttft_p90_s": rounded(planned.ttft_p90_s),
                "tpot_p90_s": rounded(planned.tpot_p90_s),
            },
        }  # fmt: skip

    def _catch_up(self, now_s: float) -> None:
        """Sum up the buckets that ended since the last snapshot."""
        self._windows.advance(now_s)
        known = self._points[-1][0] if self._points else -1
        for number in range(max(known + 1, self._windows.first()), self._windows.newest):
            span = self._windows.bucket(number)
            assert span is not None
            self._points.append((number, point_of(span)))
        while self._points and self._points[0][0] < self._windows.first():
            self._points.popleft()
