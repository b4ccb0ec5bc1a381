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
    new_blocks: Tensor  # int64: blocks whose first slot is written in this step
    sample_rows: Tensor  # int64: the last row of each sequence that samples, padded with row 0
    num_samples: int
    block_tables: Tensor  # [B, longest] int64 on the CPU; padded with the sequence's own first block


def pack(steps: Seq[SequenceStep], block_size: int, row_multiple: int, device: torch.device) -> StepBatch:
    """Pack one step by itself; see `StepPacker`."""
    return StepPacker(block_size, row_multiple, device).pack(steps)


class StepPacker:
    """Packs one step after the other and keeps what two of them share; owned by one thread.

    Rows, and rows that sample, are padded to a multiple of `row_multiple`. On a CPU the tensors of a batch are valid
    until the next one is packed: steps of the same shape use the same memory.
    """

    def __init__(self, block_size: int, row_multiple: int, device: torch.device) -> None:
        self._block_size = block_size
        self._row_multiple = row_multiple
        self._device = device
        self._tables = BlockTables()
        self._buffer: _Buffer | None = None

    def pack(self, steps: Seq[SequenceStep]) -> StepBatch:
        """Cost: one pass over sequences and tokens, and over the blocks that are new; one transfer to the device."""
        starts = [step.start for step in steps]
        lengths = [len(step.token_ids) for step in steps]
        sampling = [i for i, step in enumerate(steps) if step.sample is not None]
        num_tokens = sum(lengths)
        buffer = self._buffer_for(num_tokens, len(sampling))
        start = np.array(starts, dtype=np.int64)
        length = np.array(lengths, dtype=np.int64)
        end = start + length
        tables = self._tables.update(steps, -(-end // self._block_size))
        buffer.ids[:num_tokens] = list(chain.from_iterable([step.token_ids for step in steps]))
        if num_tokens == len(steps):  # all decode: a sequence is a row
            buffer.positions[:num_tokens] = start
            owners = np.arange(num_tokens)
            buffer.sample_rows[: len(sampling)] = sampling
        else:
            last_rows = np.cumsum(length) - 1
            buffer.positions[:num_tokens] = np.arange(num_tokens) + np.repeat(start - last_rows - 1 + length, length)
            owners = np.repeat(np.arange(len(steps)), length)
            buffer.sample_rows[: len(sampling)] = last_rows[sampling]
        real = buffer.positions[:num_tokens]
        np.remainder(real, self._block_size, out=buffer.slots)
        buffer.blocks[:] = tables[owners, real // self._block_size]
        new = buffer.blocks[buffer.slots == 0]
        parts = buffer.tensors if self._device.type == "cpu" else buffer.on(self._device)
        return StepBatch(
            num_tokens=num_tokens,
            starts=starts,
            ends=end.tolist(),
            input_ids=parts.input_ids,
            positions=parts.positions,
            write_blocks=parts.blocks,
            write_slots=parts.slots,
            new_blocks=torch.from_numpy(new).to(self._device),
            sample_rows=parts.sample_rows,
            num_samples=len(sampling),
            block_tables=torch.from_numpy(tables),
        )

    def _buffer_for(self, num_tokens: int, num_samples: int) -> _Buffer:
        """The last step's memory where the shape is the same: then what is padding is still zero."""
        if self._buffer is None or self._buffer.shape != (num_tokens, num_samples):
            self._buffer = _Buffer(num_tokens, num_samples, self._row_multiple)
        return self._buffer


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

    def on(self, device: torch.device) -> _Tensors:
        """A copy on a device."""
        return self._cut(torch.from_numpy(self._whole).to(device))

    def _cut(self, whole: Tensor) -> _Tensors:
        ids, positions, blocks, slots, sample_rows = torch.split(whole, self._sizes)
        return _Tensors(ids[None], positions[None], blocks, slots, sample_rows)


def padded(count: int, multiple: int) -> int:
    """The next multiple, from `count` up."""
    return -(-count // multiple) * multiple
