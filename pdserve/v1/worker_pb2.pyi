from pdserve.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SequenceMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEQUENCE_MODE_UNSPECIFIED: _ClassVar[SequenceMode]
    SEQUENCE_MODE_PREFILL: _ClassVar[SequenceMode]
    SEQUENCE_MODE_DECODE: _ClassVar[SequenceMode]
    SEQUENCE_MODE_FULL: _ClassVar[SequenceMode]

class ConstraintKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSTRAINT_KIND_UNSPECIFIED: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_JSON_SCHEMA: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_JSON_OBJECT: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_REGEX: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_CHOICE: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_GRAMMAR: _ClassVar[ConstraintKind]

class HandoffProgress(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HANDOFF_PROGRESS_UNSPECIFIED: _ClassVar[HandoffProgress]
    HANDOFF_PROGRESS_RESERVED: _ClassVar[HandoffProgress]
    HANDOFF_PROGRESS_COMMITTED: _ClassVar[HandoffProgress]
    HANDOFF_PROGRESS_FREED: _ClassVar[HandoffProgress]
SEQUENCE_MODE_UNSPECIFIED: SequenceMode
SEQUENCE_MODE_PREFILL: SequenceMode
SEQUENCE_MODE_DECODE: SequenceMode
SEQUENCE_MODE_FULL: SequenceMode
CONSTRAINT_KIND_UNSPECIFIED: ConstraintKind
CONSTRAINT_KIND_JSON_SCHEMA: ConstraintKind
CONSTRAINT_KIND_JSON_OBJECT: ConstraintKind
CONSTRAINT_KIND_REGEX: ConstraintKind
CONSTRAINT_KIND_CHOICE: ConstraintKind
CONSTRAINT_KIND_GRAMMAR: ConstraintKind
HANDOFF_PROGRESS_UNSPECIFIED: HandoffProgress
HANDOFF_PROGRESS_RESERVED: HandoffProgress
HANDOFF_PROGRESS_COMMITTED: HandoffProgress
HANDOFF_PROGRESS_FREED: HandoffProgress

class SequenceKey(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: ConstraintKind
    text: str
    def __init__(self, kind: _Optional[_Union[ConstraintKind, str]] = ..., text: _Optional[str] = ...) -> None: ...

class ResolvedSampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "logit_bias", "max_tokens", "min_tokens", "stop_token_ids", "eos_token_ids", "logprobs", "choice_index", "constraint")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: _containers.ScalarMap[int, float]
    max_tokens: int
    min_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    choice_index: int
    constraint: Constraint
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., choice_index: _Optional[int] = ..., constraint: _Optional[_Union[Constraint, _Mapping]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("worker_id", "boot_id", "address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    boot_id: bytes
    address: str
    def __init__(self, worker_id: _Optional[str] = ..., boot_id: _Optional[bytes] = ..., address: _Optional[str] = ...) -> None: ...

class SubmitSequence(_message.Message):
    __slots__ = ("key", "mode", "prompt_token_ids", "output_token_ids", "sampling", "deadline_left_s", "peer", "tenant", "priority")
    KEY_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    key: SequenceKey
    mode: SequenceMode
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: ResolvedSampling
    deadline_left_s: float
    peer: Peer
    tenant: str
    priority: int
    def __init__(self, key: _Optional[_Union[SequenceKey, _Mapping]] = ..., mode: _Optional[_Union[SequenceMode, str]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[ResolvedSampling, _Mapping]] = ..., deadline_left_s: _Optional[float] = ..., peer: _Optional[_Union[Peer, _Mapping]] = ..., tenant: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class AbortSequence(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: SequenceKey
    def __init__(self, key: _Optional[_Union[SequenceKey, _Mapping]] = ...) -> None: ...

class RenewLeases(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[SequenceKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[SequenceKey, _Mapping]]] = ...) -> None: ...

class SessionHello(_message.Message):
    __slots__ = ("router_boot_id", "protocol_version")
    ROUTER_BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    router_boot_id: bytes
    protocol_version: str
    def __init__(self, router_boot_id: _Optional[bytes] = ..., protocol_version: _Optional[str] = ...) -> None: ...

class RouterMessage(_message.Message):
    __slots__ = ("hello", "submit", "abort", "renew")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    hello: SessionHello
    submit: SubmitSequence
    abort: AbortSequence
    renew: RenewLeases
    def __init__(self, hello: _Optional[_Union[SessionHello, _Mapping]] = ..., submit: _Optional[_Union[SubmitSequence, _Mapping]] = ..., abort: _Optional[_Union[AbortSequence, _Mapping]] = ..., renew: _Optional[_Union[RenewLeases, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("worker_id", "boot_id", "role", "device", "pid", "protocol_version", "layout_fingerprint", "num_blocks", "block_size", "block_bytes", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "vocab_size", "transports", "metrics_port", "prefix_caching")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_PORT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    boot_id: bytes
    role: str
    device: str
    pid: int
    protocol_version: str
    layout_fingerprint: bytes
    num_blocks: int
    block_size: int
    block_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    transports: _containers.RepeatedScalarFieldContainer[str]
    metrics_port: int
    prefix_caching: bool
    def __init__(self, worker_id: _Optional[str] = ..., boot_id: _Optional[bytes] = ..., role: _Optional[str] = ..., device: _Optional[str] = ..., pid: _Optional[int] = ..., protocol_version: _Optional[str] = ..., layout_fingerprint: _Optional[bytes] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., block_bytes: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., transports: _Optional[_Iterable[str]] = ..., metrics_port: _Optional[int] = ..., prefix_caching: bool = ...) -> None: ...

class SequenceOutput(_message.Message):
    __slots__ = ("key", "first_index", "token_ids", "logprobs", "finish_reason", "timing")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    key: SequenceKey
    first_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenLogprobs]
    finish_reason: _inference_pb2.FinishReason
    timing: SequenceTiming
    def __init__(self, key: _Optional[_Union[SequenceKey, _Mapping]] = ..., first_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_inference_pb2.TokenLogprobs, _Mapping]]] = ..., finish_reason: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., timing: _Optional[_Union[SequenceTiming, _Mapping]] = ...) -> None: ...

class SequenceTiming(_message.Message):
    __slots__ = ("queue_s", "first_token_s", "cached_tokens")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    first_token_s: float
    cached_tokens: int
    def __init__(self, queue_s: _Optional[float] = ..., first_token_s: _Optional[float] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class PlainTokens(_message.Message):
    __slots__ = ("attempts", "indexes", "token_ids")
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    indexes: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, attempts: _Optional[_Iterable[int]] = ..., indexes: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PromptStarted(_message.Message):
    __slots__ = ("attempt", "queue_s")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    queue_s: float
    def __init__(self, attempt: _Optional[int] = ..., queue_s: _Optional[float] = ...) -> None: ...

class StepOutput(_message.Message):
    __slots__ = ("outputs", "plain", "started")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[SequenceOutput]
    plain: PlainTokens
    started: _containers.RepeatedCompositeFieldContainer[PromptStarted]
    def __init__(self, outputs: _Optional[_Iterable[_Union[SequenceOutput, _Mapping]]] = ..., plain: _Optional[_Union[PlainTokens, _Mapping]] = ..., started: _Optional[_Iterable[_Union[PromptStarted, _Mapping]]] = ...) -> None: ...

class SequenceFailed(_message.Message):
    __slots__ = ("key", "status", "message", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: SequenceKey
    status: str
    message: str
    reason: str
    def __init__(self, key: _Optional[_Union[SequenceKey, _Mapping]] = ..., status: _Optional[str] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class HandoffEvent(_message.Message):
    __slots__ = ("key", "progress", "bytes_moved", "blocks_skipped", "transfer_s", "busy_s", "transport")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    key: SequenceKey
    progress: HandoffProgress
    bytes_moved: int
    blocks_skipped: int
    transfer_s: float
    busy_s: float
    transport: str
    def __init__(self, key: _Optional[_Union[SequenceKey, _Mapping]] = ..., progress: _Optional[_Union[HandoffProgress, str]] = ..., bytes_moved: _Optional[int] = ..., blocks_skipped: _Optional[int] = ..., transfer_s: _Optional[float] = ..., busy_s: _Optional[float] = ..., transport: _Optional[str] = ...) -> None: ...

class BlockCounts(_message.Message):
    __slots__ = ("free", "used", "cached", "leased", "quarantined", "leaked")
    FREE_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    LEAKED_FIELD_NUMBER: _ClassVar[int]
    free: int
    used: int
    cached: int
    leased: int
    quarantined: int
    leaked: int
    def __init__(self, free: _Optional[int] = ..., used: _Optional[int] = ..., cached: _Optional[int] = ..., leased: _Optional[int] = ..., quarantined: _Optional[int] = ..., leaked: _Optional[int] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("name", "labels", "value")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.ScalarMap[str, str]
    value: float
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., value: _Optional[float] = ...) -> None: ...

class HistogramSample(_message.Message):
    __slots__ = ("name", "labels", "upper_bounds", "counts", "sum")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    UPPER_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.ScalarMap[str, str]
    upper_bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., upper_bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("blocks", "queued_sequences", "running_sequences", "uncomputed_tokens", "promised_blocks", "latency", "samples", "histograms")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    UNCOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMISED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAMS_FIELD_NUMBER: _ClassVar[int]
    blocks: BlockCounts
    queued_sequences: int
    running_sequences: int
    uncomputed_tokens: int
    promised_blocks: int
    latency: LatencyCoefficients
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    histograms: _containers.RepeatedCompositeFieldContainer[HistogramSample]
    def __init__(self, blocks: _Optional[_Union[BlockCounts, _Mapping]] = ..., queued_sequences: _Optional[int] = ..., running_sequences: _Optional[int] = ..., uncomputed_tokens: _Optional[int] = ..., promised_blocks: _Optional[int] = ..., latency: _Optional[_Union[LatencyCoefficients, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., histograms: _Optional[_Iterable[_Union[HistogramSample, _Mapping]]] = ...) -> None: ...

class LatencyCoefficients(_message.Message):
    __slots__ = ("base_s", "per_prefill_token_s", "per_decode_sequence_s", "per_context_token_s")
    BASE_S_FIELD_NUMBER: _ClassVar[int]
    PER_PREFILL_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    PER_DECODE_SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    PER_CONTEXT_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    base_s: float
    per_prefill_token_s: float
    per_decode_sequence_s: float
    per_context_token_s: float
    def __init__(self, base_s: _Optional[float] = ..., per_prefill_token_s: _Optional[float] = ..., per_decode_sequence_s: _Optional[float] = ..., per_context_token_s: _Optional[float] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "step", "failed", "handoff", "status")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    step: StepOutput
    failed: SequenceFailed
    handoff: HandoffEvent
    status: WorkerStatus
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., step: _Optional[_Union[StepOutput, _Mapping]] = ..., failed: _Optional[_Union[SequenceFailed, _Mapping]] = ..., handoff: _Optional[_Union[HandoffEvent, _Mapping]] = ..., status: _Optional[_Union[WorkerStatus, _Mapping]] = ...) -> None: ...

class PairHello(_message.Message):
    __slots__ = ("source_boot_id", "target_boot_id", "source_worker_id", "protocol_version", "layout_fingerprint", "block_bytes", "transports", "host_id", "gpu_uuid", "nccl_major", "nccl_minor")
    SOURCE_BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    GPU_UUID_FIELD_NUMBER: _ClassVar[int]
    NCCL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    NCCL_MINOR_FIELD_NUMBER: _ClassVar[int]
    source_boot_id: bytes
    target_boot_id: bytes
    source_worker_id: str
    protocol_version: str
    layout_fingerprint: bytes
    block_bytes: int
    transports: _containers.RepeatedScalarFieldContainer[str]
    host_id: str
    gpu_uuid: str
    nccl_major: int
    nccl_minor: int
    def __init__(self, source_boot_id: _Optional[bytes] = ..., target_boot_id: _Optional[bytes] = ..., source_worker_id: _Optional[str] = ..., protocol_version: _Optional[str] = ..., layout_fingerprint: _Optional[bytes] = ..., block_bytes: _Optional[int] = ..., transports: _Optional[_Iterable[str]] = ..., host_id: _Optional[str] = ..., gpu_uuid: _Optional[str] = ..., nccl_major: _Optional[int] = ..., nccl_minor: _Optional[int] = ...) -> None: ...

class RendezvousSet(_message.Message):
    __slots__ = ("epoch", "key", "value")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    key: str
    value: bytes
    def __init__(self, epoch: _Optional[int] = ..., key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("key", "transfer_id", "num_blocks")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    key: SequenceKey
    transfer_id: int
    num_blocks: int
    def __init__(self, key: _Optional[_Union[SequenceKey, _Mapping]] = ..., transfer_id: _Optional[int] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class BlocksReady(_message.Message):
    __slots__ = ("transfer_id", "first", "block_ids", "generations")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    first: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfer_id: _Optional[int] = ..., first: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ...) -> None: ...

class PromptComplete(_message.Message):
    __slots__ = ("transfer_id", "first_token_id")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    first_token_id: int
    def __init__(self, transfer_id: _Optional[int] = ..., first_token_id: _Optional[int] = ...) -> None: ...

class TransferAbort(_message.Message):
    __slots__ = ("transfer_id", "reason", "unreported")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNREPORTED_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    reason: str
    unreported: bool
    def __init__(self, transfer_id: _Optional[int] = ..., reason: _Optional[str] = ..., unreported: bool = ...) -> None: ...

class SourceMessage(_message.Message):
    __slots__ = ("hello", "rendezvous", "offer", "ready", "complete", "abort", "abort_ack")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    ABORT_ACK_FIELD_NUMBER: _ClassVar[int]
    hello: PairHello
    rendezvous: RendezvousSet
    offer: Offer
    ready: BlocksReady
    complete: PromptComplete
    abort: TransferAbort
    abort_ack: TransferAbort
    def __init__(self, hello: _Optional[_Union[PairHello, _Mapping]] = ..., rendezvous: _Optional[_Union[RendezvousSet, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., ready: _Optional[_Union[BlocksReady, _Mapping]] = ..., complete: _Optional[_Union[PromptComplete, _Mapping]] = ..., abort: _Optional[_Union[TransferAbort, _Mapping]] = ..., abort_ack: _Optional[_Union[TransferAbort, _Mapping]] = ...) -> None: ...

class PairAccept(_message.Message):
    __slots__ = ("target_boot_id", "epoch", "nonce", "transport")
    TARGET_BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    target_boot_id: bytes
    epoch: int
    nonce: bytes
    transport: str
    def __init__(self, target_boot_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., nonce: _Optional[bytes] = ..., transport: _Optional[str] = ...) -> None: ...

class Reserved(_message.Message):
    __slots__ = ("transfer_id", "skip_blocks")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SKIP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    skip_blocks: int
    def __init__(self, transfer_id: _Optional[int] = ..., skip_blocks: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("transfer_id", "indices", "tags")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    indices: _containers.RepeatedScalarFieldContainer[int]
    tags: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfer_id: _Optional[int] = ..., indices: _Optional[_Iterable[int]] = ..., tags: _Optional[_Iterable[int]] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    def __init__(self, transfer_id: _Optional[int] = ...) -> None: ...

class TargetMessage(_message.Message):
    __slots__ = ("accept", "rendezvous", "reserved", "credit", "commit", "abort", "abort_ack")
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    ABORT_ACK_FIELD_NUMBER: _ClassVar[int]
    accept: PairAccept
    rendezvous: RendezvousSet
    reserved: Reserved
    credit: Credit
    commit: Commit
    abort: TransferAbort
    abort_ack: TransferAbort
    def __init__(self, accept: _Optional[_Union[PairAccept, _Mapping]] = ..., rendezvous: _Optional[_Union[RendezvousSet, _Mapping]] = ..., reserved: _Optional[_Union[Reserved, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., abort: _Optional[_Union[TransferAbort, _Mapping]] = ..., abort_ack: _Optional[_Union[TransferAbort, _Mapping]] = ...) -> None: ...
