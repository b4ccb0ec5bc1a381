"""Records that a thread of its own writes away, so that no disk and no collector ever holds the router's loop."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from router.record import RequestRecord
from router.worker_series import PREFIX

log = logging.getLogger(__name__)

MAX_WAITING = 8192  # records; beyond them they are dropped and counted
GATHER_S = 0.05  # the first of a batch waits for others: a thread that wakes for each costs more than its work
LAST_WORDS_S = 2.0  # at the end, for what waits


class RecordWriter(Protocol):
    """Where records go; called on one thread only."""

    def write(self, records: list[RequestRecord]) -> None:
        """Take them all; may wait, may raise OSError: then they are lost."""
        ...

    def close(self) -> None:
        """Called once, last, on the same thread."""
        ...


class BackgroundSink:
    """A `RecordSink` in front of a writer. Owned by the router's loop; never waits there."""

    def __init__(
        self,
        name: str,
        writer: RecordWriter,
        max_waiting: int = MAX_WAITING,
        max_batch: int = MAX_WAITING,
        gather_s: float = GATHER_S,
    ) -> None:
        """`max_batch`: records that the writer gets at once, after `gather_s` at most."""
        self.name = name
        self.num_dropped = 0  # for want of room, or of time at the end
        self.num_failed = 0  # the writer raised
        self._writer = writer
        self._queue: queue.Queue[RequestRecord | None] = queue.Queue(max_waiting + 1)  # one more: the end always fits
        self._max_waiting, self._max_batch, self._gather_s = max_waiting, max_batch, gather_s
        self._num_in_hand = 0  # that the writer has
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def record(self, record: RequestRecord) -> None:
        if self._queue.qsize() >= self._max_waiting:
            self.num_dropped += 1
        else:
            self._queue.put_nowait(record)

    @property
    def num_lost(self) -> int:
        """Records that nobody will find, for whatever reason."""
        return self.num_dropped + self.num_failed

    def close(self) -> None:
        """Write what waits, for so long at most. Called once, when no record comes any more."""
        self._ending.set()
        self._queue.put_nowait(None)
        self._thread.join(LAST_WORDS_S)
        if self._thread.is_alive():
            self.num_dropped += self._num_in_hand + max(0, self._queue.qsize() - 1)  # but the end itself
        if self.num_lost:
            log.warning("%s: %d records were lost", self.name, self.num_lost)

    def _run(self) -> None:
        said = ""
        while (batch := self._batch()) is not None:
            self._num_in_hand = len(batch)
            try:
                self._writer.write(batch)
                said = ""
            except Exception as error:  # the thread's root: the next batch may fare better
                self.num_failed += len(batch)
                if str(error) != said:
                    log.error("%s: %d records not written: %s", self.name, len(batch), error)
                said = str(error)
            self._num_in_hand = 0
        self._writer.close()

    def _batch(self) -> list[RequestRecord] | None:
        """What waits, at least one; None at the end."""
        first = self._queue.get()
        if first is None:
            return None
        if self._queue.qsize() + 1 < self._max_batch:
            self._ending.wait(self._gather_s)
        batch = [first]
        while len(batch) < self._max_batch and not self._queue.empty():
            more = self._queue.get_nowait()
            if more is None:
                self._queue.put_nowait(None)
                break
            batch.append(more)
        return batch


class LostRecords(Collector):
    """The series that shows what was lost."""

    def __init__(self, sinks: Sequence[BackgroundSink]) -> None:
        self._sinks = tuple(sinks)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        lost = CounterMetricFamily(
            PREFIX + "records_lost", "Ended requests missing in the request log or the traces.", labels=["sink"]
        )
        for sink in self._sinks:
            lost.add_metric([sink.name], sink.num_lost)
        yield lost
