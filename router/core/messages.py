"""What a worker tells the router, as plain values; protobuf ends here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pdserve import wire
from pdserve.errors import IncompatiblePeer, ServingError, error_from_status
from pdserve.ids import PROTOCOL_VERSION, SequenceKey
from pdserve.sampling import FinishReason, TokenLogprobs
from pdserve.v1 import worker_pb2
from router.record import Transfer
from scheduling.latency import LatencyCoefficients
from scheduling.routing import Role

_MAX_ERROR_CHARS = 300


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who is at the other end of a session, and how big it is."""

    worker_id: str
    boot_id: bytes
    role: Role
    device: str
    pid: int
    address: str  # where the router reached it
    layout_fingerprint: bytes
    num_blocks: int
    block_size: int
    block_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    metrics_port: int = 0  # where it serves its own metrics; 0: nowhere


@dataclass(frozen=True, slots=True)
class SequenceTimes:
    """A worker's own durations for a sequence's first token there."""

    queue_s: float  # received (or KV committed) until its first step
    first_token_s: float  # first step until the first token sampled there
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """New tokens of one sequence."""

    key: SequenceKey
    first_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    times: SequenceTimes | None  # with the worker's first token

    @property
    def end(self) -> int:
        return self.first_index + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PlainTokens:
    """One token more for each of many sequences, by the attempt that names each; columns of equal length."""

    attempts: tuple[int, ...] = ()
    indexes: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptStarted:
    """A prompt of several steps has taken its first."""

    attempt: int
    queue_s: float  # received by the worker until then


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything one step gave."""

    deltas: tuple[SequenceDelta, ...]
    plain: PlainTokens = PlainTokens()
    started: tuple[PromptStarted, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """The sequence ended on that worker, which holds nothing of it any more."""

    key: SequenceKey
    error: ServingError


class Progress(Enum):
    """How far a handoff is."""

    RESERVED = worker_pb2.HANDOFF_PROGRESS_RESERVED
    COMMITTED = worker_pb2.HANDOFF_PROGRESS_COMMITTED
    FREED = worker_pb2.HANDOFF_PROGRESS_FREED


@dataclass(frozen=True, slots=True)
class HandoffReport:
    """A handoff went on."""

    key: SequenceKey
    progress: Progress
    transfer: Transfer | None = None  # with COMMITTED


Labels = tuple[tuple[str, str], ...]  # sorted by name


@dataclass(frozen=True, slots=True)
class Sample:
    """A counter (its name ends in _total) or gauge of a worker."""

    name: str
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of a worker; `counts` has one more than `upper_bounds` and is not cumulative over buckets."""

    name: str
    labels: Labels
    upper_bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """The worker's pool by state."""

    free: int = 0
    used: int = 0
    cached: int = 0
    leased: int = 0
    quarantined: int = 0
    leaked: int = 0


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A worker's second-by-second account of itself."""

    blocks: BlockCounts
    queued_sequences: int
    running_sequences: int
    uncomputed_tokens: int
    promised_blocks: int
    latency: LatencyCoefficients
    samples: tuple[Sample, ...]
    histograms: tuple[Histogram, ...]


WorkerEvent = StepReport | SequenceFailure | HandoffReport | StatusReport


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
    )


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
    try:
        progress = Progress(message.progress)
    except ValueError:
        raise IncompatiblePeer(f"unknown handoff progress {message.progress}") from None
    moved = None
    if progress is Progress.COMMITTED:
        moved = Transfer(
            message.bytes_moved, message.blocks_skipped, message.transfer_s, message.busy_s, message.transport or None
        )
    return HandoffReport(wire.key_from_proto(message.key), progress, moved)


def _status(message: worker_pb2.WorkerStatus) -> StatusReport:
    blocks, latency = message.blocks, message.latency
    return StatusReport(
        blocks=BlockCounts(
            blocks.free, blocks.used, blocks.cached, blocks.leased, blocks.quarantined, blocks.leaked
        ),
        queued_sequences=message.queued_sequences,
        running_sequences=message.running_sequences,
        uncomputed_tokens=message.uncomputed_tokens,
        promised_blocks=message.promised_blocks,
        latency=LatencyCoefficients(
            latency.base_s, latency.per_prefill_token_s, latency.per_decode_sequence_s, latency.per_context_token_s
        ),
        samples=tuple(Sample(s.name, tuple(sorted(s.labels.items())), s.value) for s in message.samples),
        histograms=tuple(
            Histogram(h.name, tuple(sorted(h.labels.items())), tuple(h.upper_bounds), tuple(h.counts), h.sum)
            for h in message.histograms
        ),
    )  # fmt: skip


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
