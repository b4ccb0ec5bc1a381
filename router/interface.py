"""What the fronts ask of the core, and the core gives back: token ids only, text stays above.

    front ── submit(RouterRequest) ──> RouterCore
    front <── wake ── TokenStream                                      there is news: one call, however much it is
    front ── poll ──> TokenDelta, TokenDelta, ..., Finished            (or one ServingError instead of the rest)

Every instant here is on the router's own monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pdserve.errors import ServingError
from pdserve.sampling import FinishReason, SamplingParams, TokenLogprobs
from pdserve.slo import Slo, Timing, Verdict


@dataclass(frozen=True, slots=True)
class RouterRequest:
    """One choice of one request, validated: nothing below checks it again."""

    request_id: str  # unique among the running requests of a router
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    slo: Slo
    priority: int  # lower runs earlier
    tenant: str
    received_s: float  # when the front had the whole request
    deadline_s: float  # absolute; the core ends the request with DeadlineExceeded by then
    trace_parent: str | None = None  # W3C traceparent that came with it


@dataclass(slots=True)  # not frozen: one a token, and freezing costs more than the rest of it
class TokenDelta:
    """Tokens since the last delta of the same stream; the indexes leave no gap and never repeat."""

    first_index: int  # position of token_ids[0] in the output, 0-based
    token_ids: tuple[int, ...]  # at least one
    logprobs: tuple[TokenLogprobs, ...]  # one per token, empty unless asked for
    cached_tokens: int  # prompt tokens found in a prefix cache


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request that was served."""

    finish_reason: FinishReason
    num_tokens: int  # output tokens that count
    cached_tokens: int
    timing: Timing
    verdict: Verdict


class TokenStream(Protocol):
    """The events of one request, for one reader. What is not read yet is one delta that grows."""

    def listen(self, wake: Callable[[], None]) -> None:
        """Called once, before anything is read: `wake` is called whenever `poll` has something again.

        It is called in the midst of the core's work and must only note that.
        """
        ...

    def poll(self) -> TokenDelta | Finished | None:
        """What is new, None for nothing: deltas, then exactly one Finished, or the ServingError is raised, once."""
        ...

    def cancel(self) -> None:
        """Stop the workers and free what the request holds. Idempotent; nothing to do once it ended."""
        ...

    def finish(self, num_tokens: int) -> Finished:
        """The front found a stop string: cancel the workers; reason STOP, the usage trimmed to num_tokens."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as the outside sees it."""

    id: str
    role: str  # "prefill" or "decode"
    device: str  # "cpu", "cuda:0"
    up: bool


@dataclass(frozen=True, slots=True)
class MetricsTarget:
    """Where one worker's metrics are."""

    address: str  # host:port
    worker_id: str
    role: str


class RouterCore(Protocol):
    """Everything behind the front doors."""

    def submit(self, request: RouterRequest) -> TokenStream:
        """Start a request. Raises a ServingError at once: QueueFull, NoWorker, AlreadyExists, PromptTooLong..."""
        ...

    def abort(self, request_id: str, tenant: str) -> bool:
        """End a running request of this tenant (its stream then ends with reason ABORT); False: there is none."""
        ...

    def workers(self) -> list[WorkerView]: ...

    def why_not_ready(self) -> str:
        """Why a request submitted now could not be served: workers that are missing or lost, draining; "": it could."""
        ...

    def metrics_text(self) -> bytes:
        """Every series, in Prometheus text format."""
        ...

    def metrics_targets(self) -> list[MetricsTarget]:
        """The live workers that serve metrics of their own."""
        ...

    def reject(self, request: RouterRequest, error: ServingError) -> None:
        """Note that the front refused a request before `submit`: it counts as rejected."""
        ...


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What generation_config.json asks for; None: it does not say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None  # max_new_tokens


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the fronts must know of the served model."""

    served_name: str
    max_model_len: int  # context in tokens, prompt and output together
    vocab_size: int  # ids are in [0, vocab_size)
    eos_token_ids: tuple[int, ...]
    generation_defaults: GenerationDefaults = GenerationDefaults()  # HTTP only; gRPC's are the proto's
