"""Attention of sequences with several new tokens: whole prompts and chunks, packed, KV read from the pool."""

from __future__ import annotations

import triton
import triton.language as tl

from engine.gpu.kernels.arithmetic import bent, fold, slot_offsets


@triton.jit
def fold_range(
    state_max, state_sum, state_values, queries, at_query, begin, end,
    key_pool, value_pool, tables, seat, head, inner, outer, stride_table, stride_block,
    SLOTS: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold the keys of [begin, end) in; unless MASKED, every query of the tile sees all of them."""
    key_column = tl.arange(0, KEY_PAD)
    value_column = tl.arange(0, VALUE_PAD)
    for at in range(begin, end, TILE):
        position = at + tl.arange(0, TILE)
        written = position < end
        block, slot = slot_offsets(tables, seat, position, written, stride_table, stride_block, SLOTS)
        key_at = key_pool + (block + (head * SLOTS + slot) * KEY_SIZE)[None, :] + key_column[:, None]
        keys = tl.load(key_at, mask=written[None, :] & (key_column < KEY_SIZE)[:, None], other=0.0)
        scores = bent(tl.dot(queries, keys, input_precision=PRECISION), inner, outer, SOFTCAP)
        value_at = value_pool + (block + (head * SLOTS + slot) * VALUE_SIZE)[:, None] + value_column[None, :]
        values = tl.load(value_at, mask=written[:, None] & (value_column < VALUE_SIZE)[None, :], other=0.0)
        seen = written[None, :]
        if MASKED:
            seen = seen & (position[None, :] <= at_query[:, None])
            if WINDOW > 0:
                seen = seen & (position[None, :] > at_query[:, None] - WINDOW)
        state_max, state_sum, state_values = fold(state_max, state_sum, state_values, scores, seen, values, PRECISION)
    return state_max, state_sum, state_values


@triton.jit
def prefill_kernel(
    query, out, sinks, key_pool, value_pool, tables, positions, seats, tiles,
    inner, outer, stride_query_head, stride_query_row, stride_table, stride_block,
    SHARE: tl.constexpr, KV_HEADS: tl.constexpr, SLOTS: tl.constexpr,
    KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (i, h): one query tile of one KV head. Its rows are the query heads of that KV head, token after token.

    Shapes:  tiles [num_tiles, 3]: the step's first row of the sequence, its rows, which tile of ROWS // SHARE or so
             tokens this is; out [T, H, VALUE_SIZE], contiguous.
    """
    entry = tiles + tl.program_id(0) * 3
    head = tl.program_id(1)
    first_row = tl.load(entry)
    num_rows = tl.load(entry + 1).to(tl.int32)
    flat = tl.load(entry + 2).to(tl.int32) * ROWS
    place = flat + tl.arange(0, ROWS)
    token = place // SHARE
    query_head = head * SHARE + place % SHARE
    real = token < num_rows
    seat = tl.load(seats + first_row)
    start = tl.load(positions + first_row).to(tl.int32)
    row = first_row + token
    key_column = tl.arange(0, KEY_PAD)
    source = query + query_head[:, None] * stride_query_head + row[:, None] * stride_query_row + key_column[None, :]
    queries = tl.load(source, mask=real[:, None] & (key_column < KEY_SIZE)[None, :], other=0.0)
    state_max = tl.full([ROWS], float("-inf"), tl.float32)
    state_sum = tl.zeros([ROWS], tl.float32)
    state_values = tl.zeros([ROWS, VALUE_PAD], tl.float32)

    # Keys of one tile:  [low, ...masked if there is a window... full, ...masked... high)
    lowest = start + flat // SHARE
    high = start + tl.minimum((flat + ROWS - 1) // SHARE, num_rows - 1) + 1
    low = 0
    full = (lowest + 1) // TILE * TILE  # keys before it are seen by all
    if WINDOW > 0:
        low = tl.maximum(lowest + 1 - WINDOW, 0) // TILE * TILE
        full = low
    else:
        state_max, state_sum, state_values = fold_range(
            state_max, state_sum, state_values, queries, start + token, low, full,
            key_pool, value_pool, tables, seat, head, inner, outer, stride_table, stride_block,
            SLOTS, KEY_SIZE, VALUE_SIZE, KEY_PAD, VALUE_PAD, TILE, WINDOW, SOFTCAP, False, PRECISION,
        )  # fmt: skip
    state_max, state_sum, state_values = fold_range(
        state_max, state_sum, state_values, queries, start + token, full, high,
        key_pool, value_pool, tables, seat, head, inner, outer, stride_table, stride_block,
        SLOTS, KEY_SIZE, VALUE_SIZE, KEY_PAD, VALUE_PAD, TILE, WINDOW, SOFTCAP, True, PRECISION,
    )  # fmt: skip
    if SINKS:
        sink = tl.load(sinks + query_head).to(tl.float32) * 1.4426950408889634
        highest = tl.maximum(state_max, sink)
        shrink = tl.exp2(state_max - highest)
        state_sum = state_sum * shrink + tl.exp2(sink - highest)
        state_values = state_values * shrink[:, None]
    result = state_values / tl.where(state_sum == 0.0, 1.0, state_sum)[:, None]
    value_column = tl.arange(0, VALUE_PAD)
    target = out + (row * (KV_HEADS * SHARE) + query_head)[:, None] * VALUE_SIZE + value_column[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=real[:, None] & (value_column < VALUE_SIZE)[None, :])
