"""Step times, compiled: the linear model and the roofline, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from placement.latency.roofline import Roofline
from placement.simulator.cluster import LinearSteps, StepTimes
from placement.simulator.fast.records import Records

LINEAR, ROOFLINE = 0, 1


def encode(times: StepTimes) -> tuple[int, np.ndarray[Any, Any]] | None:
    """Kind and parameters for `batch_s`; None for step times that are not compiled."""
    params = np.zeros(24)
    if isinstance(times, LinearSteps):
        c = times.model.coefficients
        params[:4] = c.base_s, c.per_prefill_token_s, c.per_decode_sequence_s, c.per_context_token_s
        return LINEAR, params
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


@njit(cache=True)
def batch_s(worker: Records, tokens: int, pairs: float, sequences: int, context: int) -> float:
    """`StepTimes.batch_s` of a worker."""
    p = worker.params
    if worker.kind == LINEAR:
        return float(p[0] + p[1] * tokens + p[2] * sequences + p[3] * context)
    return float(_roofline(p, tokens, pairs, sequences, context))


@njit(cache=True)
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
