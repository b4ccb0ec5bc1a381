"""Writing a step's keys and values into the pool."""

from __future__ import annotations

import triton
import triton.language as tl

from engine.gpu.kernels.arithmetic import slot_offsets


@triton.jit(do_not_specialize=["num_rows"])
def write_kernel(
    key, value, key_pool, value_pool, tables, positions, seats,
    num_rows, stride_key_head, stride_key_row, stride_value_head, stride_value_row, stride_table, stride_block,
    ROWS: tl.constexpr, SLOTS: tl.constexpr,
    KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
):  # fmt: skip
    """Program (i, h): ROWS rows of one KV head. A row whose seat is negative is padding and writes nothing."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    real = row < num_rows
    seat = tl.load(seats + row, mask=real, other=-1)
    real = real & (seat >= 0)
    position = tl.load(positions + row, mask=real, other=0)
    block, slot = slot_offsets(tables, seat, position, real, stride_table, stride_block, SLOTS)
    row = row.to(tl.int64)
    column = tl.arange(0, KEY_PAD)
    inside = real[:, None] & (column < KEY_SIZE)[None, :]
    source = key + head * stride_key_head + row[:, None] * stride_key_row + column[None, :]
    target = key_pool + (block + (head * SLOTS + slot) * KEY_SIZE)[:, None] + column[None, :]
    tl.store(target, tl.load(source, mask=inside, other=0.0), mask=inside)
    column = tl.arange(0, VALUE_PAD)
    inside = real[:, None] & (column < VALUE_SIZE)[None, :]
    source = value + head * stride_value_head + row[:, None] * stride_value_row + column[None, :]
    target = value_pool + (block + (head * SLOTS + slot) * VALUE_SIZE)[:, None] + column[None, :]
    tl.store(target, tl.load(source, mask=inside, other=0.0), mask=inside)
