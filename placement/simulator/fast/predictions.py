"""What the router foresees of a worker that is given a prompt, compiled."""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import CHUNK, CONTEXT, LATENCY, SEQUENCES, TOKENS, Table


@compiled
def _own(table: Table, column: int, own: int, cached: int) -> tuple[int, float]:
    """Steps of a prompt that is alone; their seconds (`LatencyModel.prefill_s`)."""
    rows = table.rows
    chunk = int(rows[CHUNK, column])
    base_s, token_s, context_s = rows[LATENCY, column], rows[LATENCY + 1, column], rows[LATENCY + 3, column]
    full = own // chunk
    rest = own - full * chunk
    steps = full + (1 if rest > 0 else 0)
    context = steps * cached + chunk * full * (full + 1) // 2 + (own if rest > 0 else 0)
    return steps, steps * base_s + own * token_s + context * context_s


@compiled
def predicted_s(table: Table, column: int, prompt: int, cached: int) -> float:
    """`routing_policies.predicted_ttft_s`."""
    rows, own = table.rows, prompt - cached
    queued, chunk = int(rows[TOKENS, column]), int(rows[CHUNK, column])
    base_s, token_s, context_s = rows[LATENCY, column], rows[LATENCY + 1, column], rows[LATENCY + 3, column]
    steps, alone_s = _own(table, column, own, cached)
    more = (queued + own + chunk - 1) // chunk - steps
    return float(alone_s + (more * base_s + queued * (token_s + context_s)))


@compiled
def joined_step_s(table: Table, column: int, prompt: int) -> float:
    """`routing_policies._joined_step_s`."""
    rows = table.rows
    base_s, sequence_s, context_s = rows[LATENCY, column], rows[LATENCY + 2, column], rows[LATENCY + 3, column]
    sequences, context = int(rows[SEQUENCES, column]), int(rows[CONTEXT, column])
    return float(base_s + (sequences + 1) * sequence_s + (context + prompt) * context_s)


@compiled
def burden(table: Table, column: int, prompt: int, cached: int) -> float:
    """`routing_policies._burden`."""
    rows, own = table.rows, prompt - cached
    queued, chunk = int(rows[TOKENS, column]), int(rows[CHUNK, column])
    base_s, sequence_s, context_s = rows[LATENCY, column], rows[LATENCY + 2, column], rows[LATENCY + 3, column]
    sequences, context = int(rows[SEQUENCES, column]), int(rows[CONTEXT, column])
    steps, alone_s = _own(table, column, own, cached)
    joint_steps = (queued + own + chunk - 1) // chunk
    first_s = predicted_s(table, column, prompt, cached) + joint_steps * (
        sequences * sequence_s + context * context_s
    )  # fmt: skip
    step_s = joined_step_s(table, column, prompt)
    return float(first_s * (step_s + (alone_s - steps * base_s) * sequences / (sequences + 1)))
