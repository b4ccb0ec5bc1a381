"""One snapshot a second for everyone who watches: serialised once, as a whole and as what changed in it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from pdserve.clock import Clock

log = logging.getLogger(__name__)

MAX_WATCHERS = 16
PERIOD_S = 1.0

_REQUESTS = ("misses", "recent")  # newest first, numbered
Snapshot = Callable[[], dict[str, Any]]


class Frame:
    """One version of the state."""

    def __init__(self, version: int, taken_s: float, sections: dict[str, Any], before: Frame | None) -> None:
        self.version = version
        self.taken_s = taken_s
        self._history = sections["history"]
        self._requests = {name: sections[name] for name in _REQUESTS}
        self._texts = {name: _dumps(one) for name, one in sections.items() if name not in (*_REQUESTS, "history")}
        self._changed = None if before is None else self._since(before)
        self._whole: str | None = None

    @property
    def whole(self) -> str:
        """All sections, JSON."""
        if self._whole is None:
            rest = {"history": self._history} | self._requests
            self._whole = self._joined(self._texts | {name: _dumps(one) for name, one in rest.items()})
        return self._whole

    @property
    def changed(self) -> str | None:
        """The sections that differ from those of the version before; of requests and history only what is new."""
        return self._changed

    def _since(self, before: Frame) -> str:
        texts = {name: text for name, text in self._texts.items() if before._texts.get(name) != text}
        known = before._history["points"]
        last = known[-1][0] if known else -1
        texts["points"] = _dumps([point for point in self._history["points"] if point[0] > last])
        for name, requests in self._requests.items():
            newest = before._requests[name][0]["n"] if before._requests[name] else 0
            texts[name] = _dumps([one for one in requests if one["n"] > newest])
        return self._joined(texts)

    def _joined(self, texts: dict[str, str]) -> str:
        parts = [f'"version":{self.version}', *(f'"{name}":{text}' for name, text in texts.items())]
        return "{" + ",".join(parts) + "}"


class Broadcast:
    """Takes snapshots while somebody watches, and only then."""

    def __init__(self, snapshot: Snapshot, clock: Clock) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._frame: Frame | None = None
        self._watchers = 0
        self._news = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def watchers(self) -> int:
        return self._watchers

    @property
    def is_full(self) -> bool:
        """Whether one more watcher would be too many."""
        return self._watchers >= MAX_WATCHERS or self._closed

    def current(self) -> Frame:
        """A frame that is no older than a period."""
        if self._frame is None or self._clock.now() - self._frame.taken_s >= PERIOD_S:
            self.refresh()
        assert self._frame is not None
        return self._frame

    async def watch(self) -> AsyncGenerator[tuple[str, str]]:
        """(kind, JSON): the whole state first, then every second what changed; one who lags gets the whole again.

        Ends at once when it is full: many may have come together.
        """
        if self.is_full:
            return
        self._watchers += 1
        if self._ticker is None:
            self._ticker = asyncio.create_task(every(PERIOD_S, self.refresh), name="dashboard")
        try:
            frame = self.current()
            yield "state", frame.whole
            while not self._closed:
                seen, news = frame.version, self._news
                if self._frame is None or self._frame.version == seen:
                    await news.wait()
                    continue
                frame = self._frame
                if frame.version == seen + 1 and frame.changed is not None:
                    yield "change", frame.changed
                else:
                    yield "state", frame.whole
        finally:
            self._watchers -= 1
            if self._watchers == 0 and self._ticker is not None:
                self._ticker.cancel()
                self._ticker = None

    def close(self) -> None:
        """End every watcher's stream."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        self._ring()

    def refresh(self) -> None:
        """Take a snapshot now, for all."""
        before = self._frame
        version = 1 if before is None else before.version + 1
        self._frame = Frame(version, self._clock.now(), self._snapshot(), before)
        self._ring()

    def _ring(self) -> None:
        """Wake those who wait now; who waits later waits for the next."""
        self._news.set()
        self._news = asyncio.Event()


async def every(period_s: float, act: Callable[[], None]) -> None:
    """Again and again, first after one period. What fails is logged, the same failure once in a row."""
    said = ""
    while True:
        await asyncio.sleep(period_s)
        try:
            act()
            said = ""
        except Exception as error:  # the task's root: a second later it may go well
            if str(error) != said:
                log.exception("the dashboard is behind")
            said = str(error)


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
