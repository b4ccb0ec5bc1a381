"""Which tokens a sequence has seen, on the device: what the penalties look at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.gpu.splits import Int64s
from pdserve.ids import SequenceKey
from scheduling.step import SampleRequest

NOBODY = 0  # the row of those without penalties: whatever it holds, it is looked at with no weight
FIRST_ROWS = 8


@dataclass(frozen=True, slots=True)
class History:
    """Tokens that the counters do not know yet; `at` is a place in the flat counters [rows * V]."""

    cleared: Int64s  # rows that begin anew
    seen_at: Int64s
    outputs_at: Int64s  # none twice
    outputs: Int64s

    @property
    def parts(self) -> list[Int64s]:
        """Everything, in the order that `load` takes."""
        return [self.cleared, self.seen_at, self.outputs_at, self.outputs]


class PenaltyCounters:
    """A row of counters for each sequence with penalties, kept from step to step and counted up on the device.

    So a token counts in the next step even if the host does not know it yet. Cost: 5 bytes * V per row; the tokens of
    a sequence that is new here are sent once.
    """

    def __init__(self, vocab: int, max_rows: int, device: torch.device) -> None:
        """`max_rows`: sequences whose counters are kept, at least twice those of a step."""
        self._vocab, self._max_rows, self._device = vocab, max_rows, device
        self.outputs = torch.zeros(0, vocab, dtype=torch.int32, device=device)  # [rows, V] times chosen as output
        self.seen = torch.zeros(0, vocab, dtype=torch.bool, device=device)  # [rows, V] in the prompt or chosen
        self._rows: OrderedDict[SequenceKey, tuple[int, int]] = OrderedDict()  # row, outputs counted; oldest first
        self._free: list[int] = []

    def find(self, keys: Seq[SequenceKey], requests: Seq[SampleRequest]) -> tuple[list[int], History]:
        """Each row's counters, as they are before the token that the step will choose, after `load` of the rest."""
        rows, cleared, seen, places, counts = [], [], [], [], []
        for key, request in zip(keys, requests, strict=True):
            if not request.sampling.has_penalties:
                rows.append(NOBODY)
                continue
            row, is_current = self._row(key, request.output_index)
            rows.append(row)
            if not is_current:
                known = np.asarray(request.token_ids, dtype=np.int64)
                assert known.min(initial=0) >= 0, "a token that only the device knows, and nothing counted before"
                outputs = known[request.num_prompt_tokens :]
                chosen, times = np.unique(outputs[outputs < self._vocab], return_counts=True)
                cleared.append(np.array([row]))
                seen.append(known[known < self._vocab] + row * self._vocab)
                places.append(chosen + row * self._vocab)
                counts.append(times)
        nothing = np.zeros(0, dtype=np.int64)
        return rows, History(*(np.concatenate([nothing, *arrays]) for arrays in (cleared, seen, places, counts)))

    def load(self, cleared: Tensor, seen_at: Tensor, outputs_at: Tensor, outputs: Tensor) -> None:
        """Enter `History.parts`."""
        if len(cleared):
            self.seen.index_fill_(0, cleared, False)
            self.outputs.index_fill_(0, cleared, 0)
            self.seen.view(-1).index_fill_(0, seen_at, True)
            self.outputs.view(-1).index_copy_(0, outputs_at, outputs.int())

    def count(self, rows: Tensor, token_ids: Tensor) -> None:
        """These tokens were chosen. Shapes: both [n] int64."""
        at = rows * self._vocab + token_ids
        self.outputs.view(-1).index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
        self.seen.view(-1).index_fill_(0, at, True)

    def _row(self, key: SequenceKey, index: int) -> tuple[int, bool]:
        """The sequence's row, and whether it holds its first `index` outputs."""
        row, counted = self._rows.pop(key, (NOBODY, -1))
        if row == NOBODY:
            if len(self._rows) >= self._max_rows:
                _, (oldest, _) = self._rows.popitem(last=False)
                self._free.append(oldest)
            row = self._take()
        self._rows[key] = row, index + 1  # count() follows
        return row, counted == index

    def _take(self) -> int:
        if not self._free:
            before = self.outputs.shape[0]
            more = max(FIRST_ROWS, before)
            zeros = torch.zeros(more, self._vocab, dtype=torch.int32, device=self._device)
            self.outputs = torch.cat((self.outputs, zeros))
            self.seen = torch.cat((self.seen, zeros.bool()))
            self._free = list(range(before + more - 1, max(before, 1) - 1, -1))
        return self._free.pop()
