"""The requests of a run, as columns in order of arrival, and the way back to the rows of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placement.workload.errors import WorkloadError
from placement.workload.fields import Fields
from placement.workload.lines import numbered_lines

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LATEST_S = 1e10  # the last arrival; far beyond, a step is too short to move a clock of 64-bit floats


@dataclass(frozen=True, slots=True)
class Requests:
    """Columns in order of arrival; equal arrivals keep the file's order."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    row: Ints  # of each, its place among the rows as they were given
    origin: str = "requests"  # for messages: the file
    lines: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # of each, its line in the file; or none

    @classmethod
    def of(
        cls, rows: Sequence[tuple[float, int, int]], origin: str = "requests", lines: Sequence[int] = ()
    ) -> Requests:
        """From (arrival_s, prompt_tokens, output_tokens), in any order."""
        arrival = np.array([one[0] for one in rows], np.float64)
        order = np.argsort(arrival, kind="stable")
        lengths = np.array([one[1:] for one in rows], np.int64).reshape(-1, 2)[order]
        numbers = np.array(lines, np.int64)
        return cls(
            arrival[order],
            np.ascontiguousarray(lengths[:, 0]),
            np.ascontiguousarray(lengths[:, 1]),
            order.astype(np.int64),
            origin,
            numbers[order] if len(numbers) else numbers,
        )

    def __len__(self) -> int:
        return len(self.arrival_s)

    def where(self, index: int) -> str:
        """How a message names one of them."""
        return f"{self.origin}:{self.lines[index]}" if len(self.lines) else f"{self.origin}: row {self.row[index]}"

    def check_clock(self, rate_scale: float) -> None:
        """Raises WorkloadError where arrivals rate_scale times as fast still come too late."""
        if self.arrival_s[-1] > LATEST_S * rate_scale:
            raise WorkloadError(
                f"{self.where(len(self) - 1)}: arrival_s is {self.arrival_s[-1]:g}, at a rate scale of "
                f"{rate_scale:g}; one divided by the other must be at most {LATEST_S:g}"
            )

    def as_given(self, column: Floats) -> Floats:
        """A column of results, put back into the order of the rows."""
        back = np.empty_like(column)
        back[self.row] = column
        return back


def read_requests(path: Path) -> Requests:
    """JSON lines of arrival_s, prompt_tokens and output_tokens; other fields are left alone."""
    rows, lines = [], []
    for number, text in numbered_lines(path):
        one = Fields.parse(path, number, text)
        for name in ("arrival_s", "prompt_tokens", "output_tokens"):
            one.require(name)
        rows.append((one.number("arrival_s"), one.tokens("prompt_tokens"), one.tokens("output_tokens")))
        lines.append(number)
    if not rows:
        raise WorkloadError(f"{path}: has no requests")
    return Requests.of(rows, str(path), lines)
