"""What the device keeps of each sequence between steps: its block table and its last token.

A step then brings only what is new, and the next step may be given before the host knows the last one's tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.gpu.splits import Int64s
from pdserve.ids import SequenceKey
from scheduling.step import SequenceStep


@dataclass(slots=True)
class _Seat:
    number: int
    step: SequenceStep  # while it is the same object, its block ids have only grown
    num_blocks: int  # of it on the device


@dataclass(frozen=True, slots=True)
class Seating:
    """Where a step's sequences sit, and what the device has to be told."""

    seats: Int64s  # [B]
    entries: Int64s  # of the flat tables: where blocks are new
    blocks: Int64s  # and which
    first_blocks: Int64s  # blocks whose first slot is written in this step


class Seats:
    """A row of the tables for every sequence that was stepped lately; owned by one thread."""

    def __init__(self, num_seats: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        """`num_seats` is at least twice the sequences of a step: the last step's are never turned out."""
        self.tables = torch.zeros(num_seats, max_blocks, dtype=torch.int32, device=device)
        self._last_tokens = torch.zeros(num_seats + 1, dtype=torch.int64, device=device)  # the last is padding's
        self._block_size = block_size
        self._taken: OrderedDict[SequenceKey, _Seat] = OrderedDict()  # the longest unused first
        self._free = list(range(num_seats))

    def seat(self, steps: Seq[SequenceStep]) -> Seating:
        """Cost: O(B), and O(blocks) that the device does not know."""
        size, width = self._block_size, self.tables.shape[1]
        seats, entries, blocks, first_blocks = [], [], [], []
        for step in steps:
            seat = self._find(step)
            seats.append(seat.number)
            end, ids = step.start + len(step.token_ids), step.block_ids
            count = -(-end // size)
            if count > seat.num_blocks:
                assert count <= width, "a sequence longer than max_model_len"
                entries.append(np.arange(seat.num_blocks, count) + seat.number * width)
                blocks.append(np.array(ids[seat.num_blocks : count], dtype=np.int64))
                seat.num_blocks = count
            for index in range(-(-step.start // size), count):
                first_blocks.append(ids[index])
        return Seating(
            seats=np.array(seats, dtype=np.int64),
            entries=np.concatenate(entries) if entries else np.zeros(0, dtype=np.int64),
            blocks=np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int64),
            first_blocks=np.array(first_blocks, dtype=np.int64),
        )

    def resolve(self, input_ids: Tensor, seats: Tensor) -> Tensor:
        """The step's tokens; where the host does not know one yet (negative), the last that its sequence chose.

        Shapes:  all [T]; seats negative where a row is padding.
        """
        return torch.where(input_ids < 0, self._last_tokens[seats], input_ids)

    def remember(self, seats: Tensor, chosen: Tensor) -> None:
        """What these sequences chose; instead of an error (negative) token 0, whose results will be thrown away.

        Shapes:  both [n] int64; no seat twice, but -1, padding's.
        """
        at = torch.where(seats < 0, len(self._last_tokens) - 1, seats)
        self._last_tokens.index_copy_(0, at, chosen.clamp_min(0))

    def _find(self, step: SequenceStep) -> _Seat:
        seat = self._taken.get(step.key)
        if seat is None:
            if not self._free:
                _, oldest = self._taken.popitem(last=False)
                self._free.append(oldest.number)
            seat = self._taken[step.key] = _Seat(self._free.pop(), step, 0)
        else:
            self._taken.move_to_end(step.key)
            if seat.step is not step:
                seat.step, seat.num_blocks = step, 0
        return seat
