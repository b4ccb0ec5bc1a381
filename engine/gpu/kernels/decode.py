"""Attention of sequences with one new token: split over the KV at fixed positions, then reduced in order."""

from __future__ import annotations

import triton
import triton.language as tl

from engine.gpu.kernels.arithmetic import bent, fold, slot_offsets, split_start


@triton.jit(do_not_specialize=["num_rows"])
def decode_kernel(
    query, key_pool, value_pool, tables, positions, seats, rows, item_starts, items,
    partial_values, partial_max, partial_sum,
    num_rows, inner, outer, stride_query_head, stride_query_row, stride_table, stride_block,
    SHARE: tl.constexpr, SHARE_PAD: tl.constexpr, KV_HEADS: tl.constexpr, SLOTS: tl.constexpr,
    KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    TILE: tl.constexpr, FIRST: tl.constexpr, PER_LEVEL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs share out the work (item, KV head); which one computes an item changes no number.

    Shapes:  rows [num_rows]: each decode's row of the step; item_starts [num_rows + 1]; items: index of the decode
             << 32 | split; partial_values [items, H, VALUE_SIZE], partial_max and partial_sum [items, H], float32.
             Items that lie wholly before the window are not written: the reduction knows them, too.
    """
    share = tl.arange(0, SHARE_PAD)
    key_column = tl.arange(0, KEY_PAD)
    value_column = tl.arange(0, VALUE_PAD)
    total = tl.load(item_starts + num_rows).to(tl.int32) * KV_HEADS
    for work in range(tl.program_id(0), total, tl.num_programs(0)):
        item = work // KV_HEADS
        head = work % KV_HEADS
        packed = tl.load(items + item)
        split = (packed & 0xFFFFFFFF).to(tl.int32)
        row = tl.load(rows + (packed >> 32))
        seat = tl.load(seats + row)
        end = tl.load(positions + row).to(tl.int32) + 1
        first = split_start(split, FIRST, PER_LEVEL)
        last = tl.minimum(split_start(split + 1, FIRST, PER_LEVEL), end)
        low = 0
        if WINDOW > 0:
            low = tl.maximum(end - WINDOW, 0)
            first = tl.maximum(first, low // TILE * TILE)
        if last > low:
            asked = query + (head * SHARE + share)[:, None] * stride_query_head + row * stride_query_row
            asks = (share < SHARE)[:, None] & (key_column < KEY_SIZE)[None, :]
            queries = tl.load(asked + key_column[None, :], mask=asks, other=0.0)
            state_max = tl.full([SHARE_PAD], float("-inf"), tl.float32)
            state_sum = tl.zeros([SHARE_PAD], tl.float32)
            state_values = tl.zeros([SHARE_PAD, VALUE_PAD], tl.float32)
            for at in range(first, last, TILE):
                position = at + tl.arange(0, TILE)
                seen = (position >= low) & (position < last)
                block, slot = slot_offsets(tables, seat, position, seen, stride_table, stride_block, SLOTS)
                # What is not seen is not read: it may be anybody's, or not a number.
                key_at = key_pool + (block + (head * SLOTS + slot) * KEY_SIZE)[None, :] + key_column[:, None]
                keys = tl.load(key_at, mask=seen[None, :] & (key_column < KEY_SIZE)[:, None], other=0.0)
                scores = bent(tl.dot(queries, keys, input_precision=PRECISION), inner, outer, SOFTCAP)
                value_at = value_pool + (block + (head * SLOTS + slot) * VALUE_SIZE)[:, None] + value_column[None, :]
                values = tl.load(value_at, mask=seen[:, None] & (value_column < VALUE_SIZE)[None, :], other=0.0)
                state_max, state_sum, state_values = fold(
                    state_max, state_sum, state_values, scores, seen[None, :], values, PRECISION
                )
            place = item.to(tl.int64) * (KV_HEADS * SHARE) + head * SHARE + share
            tl.store(partial_max + place, state_max, mask=share < SHARE)
            tl.store(partial_sum + place, state_sum, mask=share < SHARE)
            target = partial_values + place[:, None] * VALUE_SIZE + value_column[None, :]
            tl.store(target, state_values, mask=(share < SHARE)[:, None] & (value_column < VALUE_SIZE)[None, :])


@triton.jit
def reduce_kernel(
    out, sinks, positions, rows, item_starts, partial_values, partial_max, partial_sum,
    HEADS: tl.constexpr, VALUE_SIZE: tl.constexpr, VALUE_PAD: tl.constexpr, CHUNK: tl.constexpr,
    FIRST: tl.constexpr, PER_LEVEL: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Program (i, h): the i-th decode's splits, folded CHUNK by CHUNK in order; a decode without items gives zeros.

    Shapes:  out [T, H, VALUE_SIZE], contiguous; sinks [H].
    """
    index = tl.program_id(0)
    head = tl.program_id(1)
    column = tl.arange(0, VALUE_PAD)
    begin = tl.load(item_starts + index)
    count = (tl.load(item_starts + index + 1) - begin).to(tl.int32)
    row = tl.load(rows + index)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(tl.load(positions + row).to(tl.int32) + 1 - WINDOW, 0)
    state_max = tl.full([], float("-inf"), tl.float32)
    state_sum = tl.full([], 0.0, tl.float32)
    state_values = tl.zeros([VALUE_PAD], tl.float32)
    for chunk in range(0, count, CHUNK):
        split = chunk + tl.arange(0, CHUNK)
        seen = (split < count) & (split_start(split + 1, FIRST, PER_LEVEL) > low)
        place = (begin + split) * HEADS + head
        maxima = tl.load(partial_max + place, mask=seen, other=float("-inf"))
        sums = tl.load(partial_sum + place, mask=seen, other=0.0)
        value_at = partial_values + place[:, None] * VALUE_SIZE + column[None, :]
        values = tl.load(value_at, mask=seen[:, None] & (column < VALUE_SIZE)[None, :], other=0.0)
        highest = tl.maximum(state_max, tl.max(maxima, 0))
        finite = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(maxima - finite)
        shrink = tl.exp2(state_max - finite)
        state_sum = state_sum * shrink + tl.sum(sums * weights, 0)
        state_values = state_values * shrink + tl.sum(values * weights[:, None], 0)
        state_max = highest
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        highest = tl.maximum(state_max, sink)
        shrink = tl.exp2(state_max - highest)
        state_sum = state_sum * shrink + tl.exp2(sink - highest)
        state_values = state_values * shrink
    # A sum that is not a number must show: only an exact 0 is replaced.
    result = state_values / tl.where(state_sum == 0.0, 1.0, state_sum)
    target = out + (row * HEADS + head) * VALUE_SIZE + column
    tl.store(target, result.to(out.dtype.element_ty), mask=column < VALUE_SIZE)
