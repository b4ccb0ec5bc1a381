"""Step times, compiled: the linear model, the roofline and measured curves, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.compiled import compiled_lean as compiled
from placement.latency.fitted import MAX_KNOTS, PiecewiseSteps, Regime
from placement.latency.roofline import Roofline
from placement.simulator.cluster import LinearSteps, StepTimes
from placement.simulator.fast.records import NUM_PARAMS, Records

LINEAR, ROOFLINE, PIECEWISE = 0, 1, 2
_REGIME = 5 + 2 * MAX_KNOTS  # knots, scale, three coefficients, rows, seconds
_PREFILL, _DECODE, _LARGE, _MIXED = (1 + i * _REGIME for i in range(4))  # behind the size where decodes are large


def encode(times: StepTimes) -> tuple[int, np.ndarray[Any, Any]] | None:
    """Kind and parameters for `batch_s`; None for step times that are not compiled."""
    params = np.zeros(NUM_PARAMS)
    if isinstance(times, LinearSteps):
        c = times.model.coefficients
        params[:4] = c.base_s, c.per_prefill_token_s, c.per_decode_sequence_s, c.per_context_token_s
        return LINEAR, params
    if isinstance(times, PiecewiseSteps):
        return PIECEWISE, _encode_piecewise(times, params)
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
    return ROOFLINE, params


def _encode_piecewise(times: PiecewiseSteps, params: Records) -> Records:
    params[0] = times.large_from if times.large_decode is not None else np.inf
    regimes = (times.prefill, times.decode, times.large_decode or times.decode, times.mixed)
    for at, regime in zip((_PREFILL, _DECODE, _LARGE, _MIXED), regimes, strict=True):
        params[at : at + _REGIME] = _encode_regime(regime)
    return params


def _encode_regime(regime: Regime) -> Records:
    row = np.zeros(_REGIME)
    row[:5] = len(regime.rows), regime.rows_scale, regime.per_pair_s, regime.per_sequence_s, regime.per_context_s
    row[5 : 5 + len(regime.rows)] = regime.rows
    row[5 + MAX_KNOTS : 5 + MAX_KNOTS + len(regime.rows)] = regime.seconds
    return row


@compiled
def batch_s(worker: Records, tokens: int, pairs: float, sequences: int, context: int) -> float:
    """`StepTimes.batch_s` of a worker."""
    p = worker.params
    if worker.kind == LINEAR:
        return float(p[0] + p[1] * tokens + p[2] * sequences + p[3] * context)
    if worker.kind == ROOFLINE:
        return float(_roofline(p, tokens, pairs, sequences, context))
    if sequences == 0:
        at = _PREFILL
    elif tokens > 0:
        at = _MIXED
    else:
        at = _LARGE if sequences >= p[0] else _DECODE
    return float(_regime(p[at : at + _REGIME], tokens + sequences, pairs, sequences, context))


@compiled
def _regime(p: Records, num_rows: int, pairs: float, sequences: int, context: int) -> float:
    """`Regime.step_s`."""
    at, i, rows, seconds = p[1] * num_rows, 0, p[5:], p[5 + MAX_KNOTS :]
    while i < p[0] - 2 and at >= rows[i + 1]:
        i += 1
    slope = (seconds[i + 1] - seconds[i]) / (rows[i + 1] - rows[i])
    curve = seconds[i] + slope * (at - rows[i])
    linear = p[2] * pairs + p[3] * sequences + p[4] * context
    return float(max(0.0, curve + linear))


@compiled
def _roofline(p: Records, prefill_tokens: int, pairs: float, sequences: int, context: int) -> float:
    """`Roofline.parts(...).total_s`."""
    rate, bandwidth = p[0], p[1]
    tokens = prefill_tokens + sequences
    sampled = sequences + (1 if prefill_tokens > 0 else 0)
    arithmetic_s = (p[2] * tokens + p[3] * sampled) / rate
    experts = p[4]
    share = 1.0 if experts == 1.0 else 1.0 - p[5] ** float(tokens)
    layer = p[6] + share * experts * p[7]
    reading_s = (p[8] * layer + p[9]) * p[10] / bandwidth
    kv_s = context * p[11] / bandwidth
    attention_s = max(p[12] * pairs / rate, kv_s)
    activations = tokens * p[14] * 2.0
    tp, link = p[15], p[18]
    collectives_s = 0.0
    if tp > 1.0:
        collectives_s += 2 * p[8] * (p[17] + 2.0 * (tp - 1) / tp * activations / link)
    collectives_s = collectives_s + (p[16] - 1) * (p[17] + activations / tp / link)
    return float(max(arithmetic_s, reading_s) + attention_s + collectives_s + p[13])
