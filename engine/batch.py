"""A step's sequences, packed: every index that the forward pass needs, built once."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from engine.block_tables import BlockTables, Int64s
from scheduling.step import SequenceStep

__all__ = ["Int64s", "StepBatch", "StepPacker", "pack", "padded"]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One packed step. T: rows with padding; n: rows that are tokens; B: sequences."""

    num_tokens: int  # n; rows [n, T) are padding: token 0 at position 0, no KV written, none read
    starts: list[int]  # [B] num_computed_tokens before the step
    ends: list[int]  # [B] and after it; a sequence's rows are consecutive, in order
    input_ids: Tensor  # [1, T] int64
    positions: Tensor  # [1, T] int64
    write_blocks: Tensor  # [n] int64: where the KV of each row goes
    write_slots: Tensor  # [n] int64
    new_blocks: Tensor  # int64: blocks whose first slot is written in this step, and the last is not
    sample_rows: Tensor  # int64: the last row of each sequence that samples, padded with row 0
    num_samples: int
    block_tables: (
        Tensor  # [B, longest or more] int64 on the CPU; what covers no position is a block of the sequence's own
    )


def pack(steps: Seq[SequenceStep], block_size: int, row_multiple: int, device: torch.device) -> StepBatch:
    """Pack one step by itself; see `StepPacker`."""
    return StepPacker(block_size, row_multiple, device).pack(steps)


class StepPacker:
    """Packs one step after the other and keeps what two of them share; owned by one thread.

    Rows, and rows that sample, are padded to a multiple of `row_multiple`. The block tables, and on a CPU all tensors
    of a batch, are valid until the next one is packed: steps of the same shape use the same memory.
    """

    def __init__(self, block_size: int, row_multiple: int, device: torch.device) -> None:
        self._block_size = block_size
        self._row_multiple = row_multiple
        self._device = device
        self._tables = BlockTables(block_size)
        self._buffer = _Buffer(0, 0, row_multiple)
        self._no_blocks = torch.empty(0, dtype=torch.int64, device=device)

    def pack(self, steps: Seq[SequenceStep]) -> StepBatch:
        """Cost: one pass over sequences and tokens, and over the blocks that are new; one transfer to the device."""
        steps = tuple(steps)
        starts = [step.start for step in steps]
        ids = list(chain.from_iterable([step.token_ids for step in steps]))
        sampling = [i for i, step in enumerate(steps) if step.sample is not None]
        if self._buffer.shape != (len(ids), len(sampling)):
            self._buffer = _Buffer(len(ids), len(sampling), self._row_multiple)
        if len(ids) == len(steps):
            ends = [start + 1 for start in starts]
            tables = self._tables.update(steps, ends)
            new = self._fill_decode(steps, ids, starts, sampling)
        else:
            ends = [step.end for step in steps]
            tables = self._tables.update(steps, ends)
            new = self._fill(ids, np.array(starts), np.array(ends), sampling)
        parts = self._buffer.tensors if self._device.type == "cpu" else self._buffer.on(self._device)
        return StepBatch(
            num_tokens=len(ids),
            starts=starts,
            ends=ends,
            input_ids=parts.input_ids,
            positions=parts.positions,
            write_blocks=parts.blocks,
            write_slots=parts.slots,
            new_blocks=torch.tensor(new, device=self._device) if new else self._no_blocks,
            sample_rows=parts.sample_rows,
            num_samples=len(sampling),
            block_tables=tables,
        )

    def _fill_decode(
        self, steps: Seq[SequenceStep], ids: list[int], starts: list[int], sampling: list[int]
    ) -> list[int]:
        """Every sequence is a row. Plain lists and one assignment: after a model's pass has emptied the caches, each
        call of numpy costs microseconds. Returns the blocks that begin and do not end."""
        size = self._block_size
        slots = [start % size for start in starts]
        blocks = [step.block_ids[start // size] for step, start in zip(steps, starts, strict=True)]
        self._buffer.assign(ids, starts, blocks, slots, sampling)
        return [block for block, slot in zip(blocks, slots, strict=True) if slot == 0 < size - 1]

    def _fill(self, ids: list[int], starts: Int64s, ends: Int64s, sampling: list[int]) -> list[int]:
        """The same for any step."""
        buffer, num_tokens = self._buffer, len(ids)
        lengths = ends - starts
        past_rows = np.cumsum(lengths)  # of each sequence, the row after its last
        buffer.ids[:num_tokens] = ids
        real = buffer.positions[:num_tokens]
        real[:] = np.arange(num_tokens) + np.repeat(ends - past_rows, lengths)
        buffer.slots[:] = real % self._block_size
        buffer.blocks[:] = self._tables.rows[np.repeat(np.arange(len(lengths)), lengths), real // self._block_size]
        buffer.sample_rows[: len(sampling)] = past_rows[sampling] - 1
        begun = (buffer.slots == 0) & (real + self._block_size > np.repeat(ends, lengths))
        new: list[int] = buffer.blocks[begun].tolist()
        return new


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What a `_Buffer` holds, as a StepBatch has it."""

    input_ids: Tensor
    positions: Tensor
    blocks: Tensor
    slots: Tensor
    sample_rows: Tensor


class _Buffer:
    """One array, so that a device gets one copy:  ids | positions | write blocks | write slots | sample rows."""

    def __init__(self, num_tokens: int, num_samples: int, row_multiple: int) -> None:
        self.shape = (num_tokens, num_samples)
        rows = padded(num_tokens, row_multiple)
        self._sizes = [rows, rows, num_tokens, num_tokens, padded(num_samples, row_multiple)]
        self._whole = np.zeros(sum(self._sizes), dtype=np.int64)
        parts = np.split(self._whole, np.cumsum(self._sizes)[:-1].tolist())
        self.ids, self.positions, self.blocks, self.slots, self.sample_rows = parts
        self.tensors = self._cut(torch.from_numpy(self._whole))
        self._row_padding = [0] * (rows - num_tokens)
        self._sample_padding = [0] * (self._sizes[-1] - num_samples)

    def assign(
        self, ids: list[int], positions: list[int], blocks: list[int], slots: list[int], sample_rows: list[int]
    ) -> None:
        """Everything at once, without padding."""
        rows = self._row_padding
        self._whole[:] = ids + rows + positions + rows + blocks + slots + sample_rows + self._sample_padding

    def on(self, device: torch.device) -> _Tensors:
        """A copy on a device."""
        return self._cut(torch.from_numpy(self._whole).to(device))

    def _cut(self, whole: Tensor) -> _Tensors:
        ids, positions, blocks, slots, sample_rows = torch.split(whole, self._sizes)
        return _Tensors(ids[None], positions[None], blocks, slots, sample_rows)


def padded(count: int, multiple: int) -> int:
    """The next multiple, from `count` up."""
    return -(-count // multiple) * multiple
