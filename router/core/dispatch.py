"""Tells the workers of a placement what to do: both at once, neither waits for the other."""

from __future__ import annotations

from pdserve import wire
from pdserve.v1 import worker_pb2
from router.core.active import ActiveRequest
from router.core.fleet import Worker
from scheduling.ledger import Holding


def dispatch(active: ActiveRequest, now_s: float, growth_tokens: int) -> None:
    """Send the sequence to its workers. The room is asked for first: P's first frame should find it."""
    active.marks.dispatched_s = now_s
    if active.prefill is None:
        _send(active, active.decode, worker_pb2.SEQUENCE_MODE_FULL, None, now_s, growth_tokens)
        return
    _send(active, active.decode, worker_pb2.SEQUENCE_MODE_DECODE, active.prefill, now_s, growth_tokens)
    _send(active, active.prefill, worker_pb2.SEQUENCE_MODE_PREFILL, active.decode, now_s, 0)


def _send(
    active: ActiveRequest,
    worker: Worker,
    mode: worker_pb2.SequenceMode,
    peer: Worker | None,
    now_s: float,
    growth_tokens: int,
) -> None:
    request = active.request
    message = worker_pb2.SubmitSequence(
        key=wire.key_to_proto(active.key),
        mode=mode,
        prompt_token_ids=request.prompt_token_ids,
        sampling=wire.sampling_to_proto(request.sampling),
        deadline_left_s=max(0.0, request.deadline_s - now_s),
        peer=None if peer is None else _peer(peer),
        tenant=request.tenant,
        priority=request.priority,
    )
    prompt_tokens = len(request.prompt_token_ids)
    tokens = prompt_tokens + min(request.sampling.max_tokens, growth_tokens)
    holding = Holding(
        sent_s=now_s,
        uncomputed_tokens=prompt_tokens - active.expected_cached_tokens if worker is active.computing else 0,
        blocks=-(-tokens // worker.identity.block_size),
    )
    worker.submit(message, active.key, holding)


def _peer(worker: Worker) -> worker_pb2.Peer:
    identity = worker.identity
    return worker_pb2.Peer(worker_id=identity.worker_id, boot_id=identity.boot_id, address=identity.address)
