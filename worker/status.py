"""What a worker tells the router every second."""

from __future__ import annotations

from typing import Protocol

from engine.core import EngineLoad
from pdserve.v1 import worker_pb2 as pb
from scheduling.latency import OnlineLatencyEstimator
from worker.telemetry import Telemetry


class HasStatus(Protocol):
    """The parts of a worker that a status is made of."""

    load: EngineLoad
    telemetry: Telemetry
    latency: OnlineLatencyEstimator


def status_message(worker: HasStatus) -> pb.WorkerStatus:
    """State when the engine counted it last, and every counter since the start."""
    load = worker.load
    blocks = pb.BlockCounts(
        free=load.blocks.free, used=load.blocks.used, cached=load.blocks.cached, leased=load.blocks.leased,
        quarantined=load.blocks.quarantined, leaked=load.leaked_blocks,
    )  # fmt: skip
    return pb.WorkerStatus(
        blocks=blocks, queued_sequences=load.waiting, running_sequences=load.running,
        uncomputed_tokens=load.uncomputed_tokens, promised_blocks=load.promised_blocks,
        latency=latency_message(worker.latency), samples=worker.telemetry.samples(),
        histograms=worker.telemetry.histograms(),
    )  # fmt: skip


def latency_message(estimator: OnlineLatencyEstimator) -> pb.LatencyCoefficients:
    """The measured latency model."""
    c = estimator.coefficients()
    return pb.LatencyCoefficients(
        base_s=c.base_s, per_prefill_token_s=c.per_prefill_token_s,
        per_decode_sequence_s=c.per_decode_sequence_s, per_context_token_s=c.per_context_token_s,
    )  # fmt: skip
