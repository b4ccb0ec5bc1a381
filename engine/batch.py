"""A step's sequences, packed: every index that the forward pass needs, built once."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scheduling.step import SequenceStep

Int64s = NDArray[np.int64]


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
    """Pack the sequences of a step.

    Rows, and rows that sample, are padded to a multiple of `row_multiple`. Cost: one pass over the tokens, one
    transfer to the device.
    """
    starts = [step.start for step in steps]
    ends = [step.end for step in steps]
    lengths = np.array(ends, dtype=np.int64) - np.array(starts, dtype=np.int64)
    num_tokens = int(lengths.sum())
    rows = padded(num_tokens, row_multiple)
    last_rows = np.cumsum(lengths) - 1
    sampling = [i for i, step in enumerate(steps) if step.sample is not None]
    num_sample_rows = padded(len(sampling), row_multiple)
    tables = block_tables(steps, block_size)

    # One buffer, so that a device gets one copy:  ids | positions | write blocks | write slots | sample rows | new
    packed = np.zeros(2 * rows + 2 * num_tokens + num_sample_rows, dtype=np.int64)
    ids, positions, blocks, slots, sample_rows = np.split(
        packed, np.cumsum([rows, rows, num_tokens, num_tokens]).tolist()
    )
    at = 0
    for step in steps:
        ids[at : at + len(step.token_ids)] = step.token_ids
        at += len(step.token_ids)
    first_rows = last_rows + 1 - lengths
    real = positions[:num_tokens]
    real[:] = np.arange(num_tokens) + np.repeat(np.array(starts, dtype=np.int64) - first_rows, lengths)
    owner = np.repeat(np.arange(len(steps)), lengths)
    blocks[:] = tables[owner, real // block_size]
    slots[:] = real % block_size
    sample_rows[: len(sampling)] = last_rows[sampling]
    new = blocks[slots == 0]

    on_device = torch.from_numpy(np.concatenate((packed, new))).to(device)
    parts = torch.split(on_device, [rows, rows, num_tokens, num_tokens, num_sample_rows, len(new)])
    return StepBatch(
        num_tokens=num_tokens,
        starts=starts,
        ends=ends,
        input_ids=parts[0][None],
        positions=parts[1][None],
        write_blocks=parts[2],
        write_slots=parts[3],
        new_blocks=parts[5],
        sample_rows=parts[4],
        num_samples=len(sampling),
        block_tables=torch.from_numpy(tables),
    )


def padded(count: int, multiple: int) -> int:
    """The next multiple, from `count` up."""
    return -(-count // multiple) * multiple


def block_tables(steps: Seq[SequenceStep], block_size: int) -> Int64s:
    """[B, longest]: the blocks that hold [0, end) of each sequence; the rest is its own first block."""
    counts = [-(-step.end // block_size) for step in steps]
    tables = np.empty((len(steps), max(counts)), dtype=np.int64)
    for row, step, count in zip(tables, steps, counts, strict=True):
        row[:count] = step.block_ids[:count]
        row[count:] = row[0]
    return tables
