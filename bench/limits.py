"""What the machine can do, measured beside what is compared with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.native.packed_linear import HugePages

READ_BYTES = 1 << 28  # beyond every cache but the largest


def least_seconds(act: Callable[[], object], tries: int) -> float:
    """The quickest of some tries, after one that does not count: CPU time of this thread, or wall time where torch has
    several."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    act()
    seconds = []
    for _ in range(tries):
        start = clock()
        act()
        seconds.append(clock() - start)
    return min(seconds)


@dataclass(frozen=True, slots=True)
class ReadRate:
    """Of a sum over 256 MiB."""

    ordinary_bytes_per_s: float  # in 4 KiB pages, as most programs hold their data
    huge_bytes_per_s: float  # in huge pages, where the system grants them

    @property
    def best(self) -> float:
        return max(self.ordinary_bytes_per_s, self.huge_bytes_per_s)

    def __str__(self) -> str:
        return f"{self.ordinary_bytes_per_s / 1e9:.1f} GB/s, in huge pages {self.huge_bytes_per_s / 1e9:.1f} GB/s"


def read_rate(tries: int = 5) -> ReadRate:
    """As many threads as torch has."""
    ordinary = torch.ones(READ_BYTES // 4)
    huge = torch.from_numpy(HugePages().take(READ_BYTES)).view(torch.float32).fill_(1.0)
    return ReadRate(*(READ_BYTES / least_seconds(memory.sum, tries) for memory in (ordinary, huge)))
