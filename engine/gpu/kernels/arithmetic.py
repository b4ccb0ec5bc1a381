"""What the attention kernels share. Scores are kept in units of log2, so that exp2 is the only exponential."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_start(split, FIRST: tl.constexpr, PER_LEVEL: tl.constexpr):
    """The first position of a split: engine/gpu/splits.py draws them."""
    level = split // PER_LEVEL
    return FIRST * (PER_LEVEL * ((1 << level) - 1) + ((split % PER_LEVEL) << level))


@triton.jit
def bent(scores, inner, outer, SOFTCAP: tl.constexpr):
    """Products of queries and keys to scores in log2: inner is scale / softcap and outer softcap * log2(e), or outer
    alone is scale * log2(e)."""
    if SOFTCAP:
        # tanh(x) = 1 - 2 / (e^2x + 1): right at both ends, and the same on every backend.
        scores = 1.0 - 2.0 / (tl.exp(scores * (2.0 * inner)) + 1.0)
    return scores * outer


@triton.jit
def slot_offsets(tables, table_row, positions, seen, stride_table, stride_block, SLOTS: tl.constexpr):
    """(elements to the block, slot in it) of positions of one sequence; 64 bits, for a pool beyond 2 G elements."""
    entry = tables + table_row * stride_table + positions // SLOTS
    blocks = tl.load(entry, mask=seen, other=0).to(tl.int64)
    return blocks * stride_block, positions % SLOTS


@triton.jit
def fold(state_max, state_sum, state_values, scores, seen, value, PRECISION: tl.constexpr):
    """Take one tile of scores [R, N] and values [N, Dv] into the running softmax; -inf where nothing was seen yet.

    `seen` [R, N] or broadcasting to it. What is not seen weighs exactly 0.
    """
    scores = tl.where(seen, scores, float("-inf"))
    highest = tl.maximum(state_max, tl.max(scores, 1))
    finite = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(state_max - finite)
    state_sum = state_sum * shrink + tl.sum(weights, 1)
    product = tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    return highest, state_sum, state_values * shrink[:, None] + product
