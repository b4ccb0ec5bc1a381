"""What moved between each prefill and decode worker: bounded, whatever comes and goes."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from router.core.prediction import LINK_SERIES
from router.dashboard.entries import rounded
from router.dashboard.source import WorkerState
from router.dashboard.windows import BUCKET_S
from router.record import RequestRecord

MAX_LINKS = 512  # that are remembered; the one that was used longest ago is forgotten
_WINDOW_S = 60.0
_NUM_BUCKETS = round(_WINDOW_S / BUCKET_S) + 1


@dataclass(slots=True)
class _Moved:
    """What one link carried in one bucket of time."""

    bucket: int
    transfers: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class _Link:
    transport: str | None = None
    transfers: int = 0  # since the start
    recent: deque[_Moved] = field(default_factory=lambda: deque(maxlen=_NUM_BUCKETS))


class Links:
    """Fed with every record."""

    def __init__(self) -> None:
        self._links: OrderedDict[tuple[str, str], _Link] = OrderedDict()

    def add(self, record: RequestRecord, now_s: float) -> None:
        """Count its transfer, if it had one."""
        moved = record.transfer
        if moved is None:
            return
        pair = (record.timing.prefill_worker, record.timing.decode_worker)
        link = self._links.pop(pair, None) or _Link()
        self._links[pair] = link
        if len(self._links) > MAX_LINKS:
            self._links.popitem(last=False)
        bucket = int(now_s // BUCKET_S)
        if not link.recent or link.recent[-1].bucket != bucket:
            link.recent.append(_Moved(bucket))
        link.transport = moved.transport or link.transport
        link.transfers += 1
        last = link.recent[-1]
        last.transfers += 1
        last.num_bytes += moved.num_bytes
        last.seconds += moved.seconds
        last.busy_s += moved.busy_s

    def rows(self, workers: list[WorkerState], now_s: float) -> list[dict[str, Any]]:
        """Every link between workers that live and have ever moved or measured something, by name."""
        live = {worker.id for worker in workers if worker.up}
        bandwidth = _bandwidths(workers)
        pairs = sorted({*bandwidth, *self._links})
        return [self._row(pair, bandwidth.get(pair), now_s) for pair in pairs if pair[0] in live and pair[1] in live]

    def _row(self, pair: tuple[str, str], bytes_per_s: float | None, now_s: float) -> dict[str, Any]:
        link = self._links.get(pair) or _Link()
        oldest = int(now_s // BUCKET_S) - _NUM_BUCKETS + 1
        recent = [one for one in link.recent if one.bucket >= oldest]
        transfers, num_bytes = sum(one.transfers for one in recent), sum(one.num_bytes for one in recent)
        busy_s = sum(one.busy_s for one in recent)
        if num_bytes and busy_s > 0.0:
            bytes_per_s = num_bytes / busy_s  # steadier than the worker's own, which is of one transfer
        return {
            "src": pair[0],
            "dst": pair[1],
            "transport": link.transport,
            "bytes_per_s": rounded(bytes_per_s, 3),
            "transfers": link.transfers,
            "recent_transfers": transfers,
            "recent_bytes": num_bytes,
            "recent_mean_s": rounded(sum(one.seconds for one in recent) / transfers, 3) if transfers else None,
        }


def _bandwidths(workers: list[WorkerState]) -> dict[tuple[str, str], float]:
    """Measured by the decode workers, of their last transfer over each link."""
    found = {}
    for worker in workers:
        for sample in worker.status.samples if worker.status is not None else ():
            if sample.name == LINK_SERIES and math.isfinite(sample.value):
                labels = dict(sample.labels)
                found[(labels.get("src", ""), labels.get("dst", ""))] = sample.value
    return found
