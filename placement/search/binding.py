"""What keeps a placement from serving more: read off its own simulation, at its goodput and just beyond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.search.bounds import Slo
from placement.simulator.cluster import ClusterSpec
from placement.simulator.requests import Outcome
from placement.simulator.results import SimulationResult
from scheduling.routing import Role


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Shares of what there is; a pool that does not exist is 0."""

    prefill: float  # of the time, in steps
    decode: float
    prefill_memory: float  # of the KV blocks, at the peak of the fullest worker
    decode_memory: float
    link: float  # of the bytes that the ports of the smaller pool can move


def utilisation_of(result: SimulationResult, cluster: ClusterSpec) -> Utilisation:
    """Over a whole run."""
    busy: dict[Role, list[float]] = {Role.PREFILL: [0.0], Role.DECODE: [0.0]}
    memory: dict[Role, list[float]] = {Role.PREFILL: [0.0], Role.DECODE: [0.0]}
    for worker in cluster.workers:
        counts = result.workers[worker.worker_id]
        busy[worker.role].append(counts.busy_s / max(result.end_s, 1e-9))
        memory[worker.role].append(counts.peak_blocks / worker.num_blocks)
    lanes = {role: len(found) - 1 for role, found in busy.items()}
    moved = cluster.link.bytes_per_s * max(min(lanes.values()), 1) * max(result.end_s, 1e-9)
    return Utilisation(
        sum(busy[Role.PREFILL]) / max(lanes[Role.PREFILL], 1),
        sum(busy[Role.DECODE]) / max(lanes[Role.DECODE], 1),
        max(memory[Role.PREFILL]),
        max(memory[Role.DECODE]),
        result.moved_bytes / moved,
    )


def binding_of(beyond: SimulationResult | None, slo: Slo, bound: str, *, colocated: bool) -> str:
    """The target that is missed first when more is asked, and where its time goes; `bound` if no run tells."""
    if beyond is None:
        return bound
    rows = beyond.requests
    served = rows.outcome == Outcome.FINISHED
    late, slow = served & (rows.ttft_s > slo.ttft_s), served & (rows.tpot_s > slo.tpot_s)
    if not (late.any() or slow.any()):
        return f"growing queues ({bound})"
    if late.sum() >= slow.sum():
        waiting = np.nanmean(rows.queue_s[late]) > np.nanmean(rows.prefill_s[late])
        return "TTFT: prompts wait" if waiting else "TTFT: the prompt's own computation"
    gaps = np.maximum(rows.output_tokens[slow] - 1, 1)
    decoding = rows.decode_s[slow] / gaps
    if np.mean(decoding > slo.tpot_s) > 0.5:
        return "TPOT: steps with prompts in them" if colocated else "TPOT: decode steps"
    wait, transfer = np.mean(rows.decode_wait_s[slow]), np.mean(rows.transfer_s[slow])
    return "TPOT: waiting for decode memory" if wait > transfer else "TPOT: KV transfer and room for it"
