"""Step times, compiled: the linear model, the roofline and measured curves, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.latency.fitted import MAX_KNOTS, PiecewiseSteps, Regime
from placement.latency.roofline import Roofline
from placement.simulator.cluster import LinearSteps, StepTimes
from placement.simulator.fast.records import NUM_PARAMS, Records

LINEAR, ROOFLINE, PIECEWISE = 0, 1, 2
KIND = NUM_PARAMS - 1
_REGIME = 5 + 2 * MAX_KNOTS  # knots, scale, three coefficients, rows, seconds
_PREFILL, _DECODE, _LARGE, _MIXED = (1 + i * _REGIME for i in range(4))  # behind the size where decodes are large


def encode(times: StepTimes) -> np.ndarray[Any, Any] | None:
    """The row for `batch_s`, parameters and kind; None for step times that are not compiled."""
    params = np.zeros(NUM_PARAMS)
    if isinstance(times, LinearSteps):
        c = times.model.coefficients
        params[:4] = c.base_s, c.per_prefill_token_s, c.per_decode_sequence_s, c.per_context_token_s
        params[KIND] = LINEAR
        return params
    if isinstance(times, PiecewiseSteps):
        params[KIND] = PIECEWISE
        _encode_piecewise(times, params)
        return params
    if not isinstance(times, Roofline):
        return None
    model, gpu, tp = times.model, times.gpu, times.tp
    values = (
        tp * gpu.flops * gpu.flops_efficiency,
        tp * gpu.memory_bytes_per_s * gpu.memory_efficiency,
        model.flops_per_token,
        2.0 * model.vocab * model.hidden,
        float(model.experts),
        1.0 - model.active_experts / model.experts,
        float(model.attention_weights),
        float(model.expert_weights),
        float(model.layers),
        float(model.vocab * model.hidden),
        model.bytes_per_weight,
        model.kv_bytes_per_token,
        model.flops_per_pair,
        gpu.step_overhead_s + model.layers * gpu.layer_overhead_s,
        float(model.hidden),
        float(tp),
        float(times.pp),
        gpu.collective_latency_s,
        gpu.peer_bytes_per_s * gpu.link_efficiency,
    )
    params[: len(values)] = values
    params[KIND] = ROOFLINE
    return params


def _encode_piecewise(times: PiecewiseSteps, params: Records) -> None:
    params[0] = times.large_from if times.large_decode is not None else np.inf
    regimes = (times.prefill, times.decode, times.large_decode or times.decode, times.mixed)
    for at, regime in zip((_PREFILL, _DECODE, _LARGE, _MIXED), regimes, strict=True):
        params[at : at + _REGIME] = _encode_regime(regime)


def _encode_regime(regime: Regime) -> Records:
    row = np.zeros(_REGIME)
    row[:5] = len(regime.rows), regime.rows_scale, regime.per_pair_s, regime.per_sequence_s, regime.per_context_s
    row[5 : 5 + len(regime.rows)] = regime.rows
    row[5 + MAX_KNOTS : 5 + MAX_KNOTS + len(regime.rows)] = regime.seconds
    return row


@compiled_apart
def batch_s(p: Records, tokens: int, pairs: float, sequences: int, context: int) -> float:
    """`StepTimes.batch_s` of a worker, from its row."""
    if p[KIND] == LINEAR:
        return float(p[0] + p[1] * tokens + p[2] * sequences + p[3] * context)
    if p[KIND] == ROOFLINE:
        return float(_roofline(p, tokens, pairs, sequences, context))
    if sequences == 0:
        at = _PREFILL
    elif tokens > 0:
        at = _MIXED
    else:
        at = _LARGE if sequences >= p[0] else _DECODE
    return float(_regime(p[at : at + _REGIME], tokens + sequences, pairs, sequences, context))


@compiled_apart
def decode_parts(p: Records, sequences: int) -> tuple[float, float, float, float, float, float, float]:
    """What `decode_s` needs of steps of these sequences and no prompt: all but their context."""
    if p[KIND] == LINEAR:
        return 0.0, p[0] + p[1] * 0 + p[2] * sequences, p[3], 1.0, 0.0, 0.0, -np.inf
    if p[KIND] == ROOFLINE:
        alone_s, collectives_s = _roofline_fixed(p, sequences, sequences)
        return alone_s, 0.0, p[11], p[1], collectives_s, p[13], -np.inf
    at = _LARGE if sequences >= p[0] else _DECODE
    p = p[at : at + _REGIME]
    return _curve(p, sequences), p[2] * 0.0 + p[3] * sequences, p[4], 1.0, 0.0, 0.0, 0.0


@compiled
def decode_s(parts: tuple[float, float, float, float, float, float, float], context: int) -> float:
    """`batch_s`, to the last bit: added in the same order, and a 0 added or a division by 1 changes nothing."""
    first, inner, per, over, third, fourth, least = parts
    return max(least, first + (inner + context * per / over) + third + fourth)


@compiled_apart
def _regime(p: Records, num_rows: int, pairs: float, sequences: int, context: int) -> float:
    """`Regime.step_s`."""
    linear = p[2] * pairs + p[3] * sequences + p[4] * context
    return float(max(0.0, _curve(p, num_rows) + linear))


@compiled
def _curve(p: Records, num_rows: int) -> float:
    at, i, rows, seconds = p[1] * num_rows, 0, p[5:], p[5 + MAX_KNOTS :]
    while i < p[0] - 2 and at >= rows[i + 1]:
        i += 1
    slope = (seconds[i + 1] - seconds[i]) / (rows[i + 1] - rows[i])
    return float(seconds[i] + slope * (at - rows[i]))


@compiled
def _roofline(p: Records, prefill_tokens: int, pairs: float, sequences: int, context: int) -> float:
    """`Roofline.parts(...).total_s`."""
    tokens = prefill_tokens + sequences
    alone_s, collectives_s = _roofline_fixed(p, tokens, sequences + (1 if prefill_tokens > 0 else 0))
    attention_s = max(p[12] * pairs / p[0], context * p[11] / p[1])
    return float(alone_s + attention_s + collectives_s + p[13])


@compiled
def _roofline_fixed(p: Records, tokens: int, sampled: int) -> tuple[float, float]:
    """What does not depend on what is attended to: arithmetic or reading weights; collectives."""
    rate, bandwidth = p[0], p[1]
    arithmetic_s = (p[2] * tokens + p[3] * sampled) / rate
    experts = p[4]
    share = 1.0 if experts == 1.0 else 1.0 - p[5] ** float(tokens)
    layer = p[6] + share * experts * p[7]
    reading_s = (p[8] * layer + p[9]) * p[10] / bandwidth
    activations = tokens * p[14] * 2.0
    tp, link = p[15], p[18]
    collectives_s = 0.0
    if tp > 1.0:
        collectives_s += 2 * p[8] * (p[17] + 2.0 * (tp - 1) / tp * activations / link)
    collectives_s = collectives_s + (p[16] - 1) * (p[17] + activations / tp / link)
    return max(arithmetic_s, reading_s), collectives_s
