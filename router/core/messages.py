"""What a worker tells the router, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason, TokenLogprobs
from router.record import Transfer
from scheduling.latency import LatencyCoefficients
from scheduling.routing import Role


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
    prefix_caching: bool = False  # it keeps the KV of finished prompts


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

    RESERVED = "reserved"  # D has set blocks aside
    COMMITTED = "committed"  # D owns the sequence
    FREED = "freed"  # P holds nothing of it any more


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
