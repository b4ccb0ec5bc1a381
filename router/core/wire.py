"""What workers say, from protobuf to plain values: the one place where the router reads their messages."""

from __future__ import annotations

import math
from dataclasses import astuple

from pdserve import wire
from pdserve.errors import IncompatiblePeer, error_from_status
from pdserve.ids import PROTOCOL_VERSION
from pdserve.v1 import worker_pb2
from router.core.messages import (
    BlockCounts,
    HandoffReport,
    Histogram,
    PlainTokens,
    Progress,
    PromptStarted,
    Sample,
    SequenceDelta,
    SequenceFailure,
    SequenceTimes,
    StatusReport,
    StepReport,
    WorkerEvent,
    WorkerIdentity,
)
from router.record import Transfer
from scheduling.latency import LatencyCoefficients
from scheduling.routing import Role

_MAX_ERROR_CHARS = 300
_PROGRESS = {
    worker_pb2.HANDOFF_PROGRESS_RESERVED: Progress.RESERVED,
    worker_pb2.HANDOFF_PROGRESS_COMMITTED: Progress.COMMITTED,
    worker_pb2.HANDOFF_PROGRESS_FREED: Progress.FREED,
}


def identity_from_proto(message: worker_pb2.WorkerMessage, address: str) -> WorkerIdentity:
    """Who answered. Errors: `IncompatiblePeer` for another protocol version, role or an impossible size."""
    if message.WhichOneof("message") != "hello":
        raise IncompatiblePeer(f"worker at {address} did not begin with its hello")
    hello = message.hello
    if hello.protocol_version != PROTOCOL_VERSION:
        raise IncompatiblePeer(
            f"worker {hello.worker_id} at {address} speaks protocol {hello.protocol_version!r}, "
            f"this router {PROTOCOL_VERSION!r}"
        )
    if hello.role not in {role.value for role in Role}:
        raise IncompatiblePeer(f"worker {hello.worker_id} at {address} has role {hello.role!r}")
    sizes = (hello.num_blocks, hello.block_size, hello.max_num_seqs, hello.max_num_batched_tokens)
    if not hello.worker_id or len(hello.boot_id) != 16 or 0 in sizes:
        raise IncompatiblePeer(f"worker {hello.worker_id!r} at {address} sent an incomplete hello")
    return WorkerIdentity(
        worker_id=hello.worker_id,
        boot_id=hello.boot_id,
        role=Role(hello.role),
        device=hello.device,
        pid=hello.pid,
        address=address,
        layout_fingerprint=hello.layout_fingerprint,
        num_blocks=hello.num_blocks,
        block_size=hello.block_size,
        block_bytes=hello.block_bytes,
        max_num_seqs=hello.max_num_seqs,
        max_num_batched_tokens=hello.max_num_batched_tokens,
        max_model_len=hello.max_model_len,
        vocab_size=hello.vocab_size,
        metrics_port=hello.metrics_port,
        prefix_caching=hello.prefix_caching,
    )


def event_from_proto(message: worker_pb2.WorkerMessage) -> WorkerEvent:
    """One message after the hello. Errors: `IncompatiblePeer` for what this protocol version does not have."""
    kind = message.WhichOneof("message")
    if kind == "step":
        step = message.step
        started = tuple(PromptStarted(one.attempt, one.queue_s) for one in step.started)
        return StepReport(tuple(_delta(output) for output in step.outputs), _plain(step.plain), started)
    if kind == "failed":
        failed = message.failed
        text = failed.message.partition("\n")[0][:_MAX_ERROR_CHARS]  # a client reads it
        return SequenceFailure(wire.key_from_proto(failed.key), error_from_status(failed.status, text, failed.reason))
    if kind == "handoff":
        return _handoff(message.handoff)
    if kind == "status":
        return _status(message.status)
    raise IncompatiblePeer(f"unexpected message {kind!r} from a worker")


def _delta(output: worker_pb2.SequenceOutput) -> SequenceDelta:
    logprobs = tuple(wire.logprobs_from_proto(entry) for entry in output.logprobs)
    if logprobs and len(logprobs) != len(output.token_ids):
        raise IncompatiblePeer(f"{len(output.token_ids)} tokens came with {len(logprobs)} log-probabilities")
    times = None
    if output.HasField("timing"):
        timing = output.timing
        times = SequenceTimes(timing.queue_s, timing.first_token_s, timing.cached_tokens)
    return SequenceDelta(
        key=wire.key_from_proto(output.key),
        first_index=output.first_index,
        token_ids=tuple(output.token_ids),
        logprobs=logprobs,
        finish_reason=wire.finish_reason_from_proto(output.finish_reason),
        times=times,
    )


def _plain(message: worker_pb2.PlainTokens) -> PlainTokens:
    plain = PlainTokens(tuple(message.attempts), tuple(message.indexes), tuple(message.token_ids))
    if not len(plain.attempts) == len(plain.indexes) == len(plain.token_ids):
        raise IncompatiblePeer("the columns of a step's tokens differ in length")
    return plain


def _handoff(message: worker_pb2.HandoffEvent) -> HandoffReport:
    progress = _PROGRESS.get(message.progress)
    if progress is None:
        raise IncompatiblePeer(f"unknown handoff progress {message.progress}")
    moved = None
    if progress is Progress.COMMITTED:
        moved = Transfer(
            message.bytes_moved, message.blocks_skipped, message.transfer_s, message.busy_s, message.transport or None
        )
    return HandoffReport(wire.key_from_proto(message.key), progress, moved)


def _status(message: worker_pb2.WorkerStatus) -> StatusReport:
    blocks = message.blocks
    return StatusReport(
        blocks=BlockCounts(
            blocks.free, blocks.used, blocks.cached, blocks.leased, blocks.quarantined, blocks.leaked
        ),
        queued_sequences=message.queued_sequences,
        running_sequences=message.running_sequences,
        uncomputed_tokens=message.uncomputed_tokens,
        promised_blocks=message.promised_blocks,
        latency=_latency(message.latency),
        samples=tuple(Sample(s.name, tuple(sorted(s.labels.items())), s.value) for s in message.samples),
        histograms=tuple(
            Histogram(h.name, tuple(sorted(h.labels.items())), tuple(h.upper_bounds), tuple(h.counts), h.sum)
            for h in message.histograms
        ),
    )  # fmt: skip


def _latency(given: worker_pb2.LatencyCoefficients) -> LatencyCoefficients:
    """What cannot be a time is not known."""
    found = LatencyCoefficients(
        given.base_s, given.per_prefill_token_s, given.per_decode_sequence_s, given.per_context_token_s
    )
    return found if all(0.0 <= one < math.inf for one in astuple(found)) else LatencyCoefficients()
