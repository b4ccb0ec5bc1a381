"""What is simulated: workers, what connects them, and how long things take that no latency model speaks of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Protocol

from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import Role, RoutingConfig

_WORD = (1 << 64) - 1
_FRONTS = 1 << 40  # no worker's number


class StepTimes(Protocol):
    """How long a step takes, seconds."""

    def batch_s(self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int) -> float:
        """`prefill_pairs`: query-key pairs of the prompt tokens; `context_tokens`: positions whose KV is read."""
        ...


@dataclass(frozen=True, slots=True)
class LinearSteps:
    """The latency model that workers measure and routers predict with, as step times."""

    model: LatencyModel

    def batch_s(self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int) -> float:
        return self.model.step_s(prefill_tokens, decode_sequences, context_tokens)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker."""

    worker_id: str
    role: Role
    scheduler: SchedulerConfig
    num_blocks: int
    block_size: int
    step_times: StepTimes
    prefix_caching: bool = True
    gpus: float = 1.0
    prior: LatencyCoefficients | None = None  # what its router believes before it has measured; None: nothing


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """KV from one worker to another. Every worker has one port out and one in; flows share a port equally."""

    bytes_per_s: float  # of a port, each way
    latency_s: float = 0.0  # of one announcement's blocks, before the first byte

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0.0 or self.latency_s < 0.0:
            raise ValueError(f"link of {self.bytes_per_s} bytes/s and {self.latency_s} s: must be above 0, at least 0")


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds outside steps and transfers; measured on a running cluster, or 0."""

    front_s: float = 0.0  # a request has come until the router has placed it
    message_s: float = 0.0  # router to worker, worker to router, worker to worker: each way
    step_s: float = 0.0  # between two steps of an engine
    wake_s: float = 0.0  # an idle engine's first step begins this much later


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Workers that compute at the same instant on one machine slow one another down.

    A step takes max(1, computing / at_once) * (1 + the sum of what each other that computes costs it) times as long as
    alone. A prompt's step wants arithmetic, a decode memory: costs go by who slows whom.
    """

    at_once: float  # workers that have cores of their own: the machine's cores / the threads of a worker
    prompts_by_prompts: float  # what a step with prompt tokens loses to each other worker in such a step
    prompts_by_decodes: float  # the same to each in a step of decodes alone
    decodes_by_prompts: float
    decodes_by_decodes: float
    rested_prompts_s: float = 0.0  # a step of prompts behind a rest takes so much longer, beside another that computes

    def __post_init__(self) -> None:
        if not self.at_once > 0.0:
            raise ValueError(f"at_once is {self.at_once}; it must be above 0")
        for field_ in fields(self)[1:]:
            if not 0.0 <= getattr(self, field_.name) < math.inf:
                raise ValueError(f"{field_.name} is {getattr(self, field_.name)}; it must be at least 0")

    def factor(self, prompts: bool, others_prompts: int, others_decodes: int) -> float:
        """How many times as long a step takes beside so many others; `prompts`: it has prompt tokens."""
        waiting = max(1.0, (1 + others_prompts + others_decodes) / self.at_once)
        by_prompts, by_decodes = (
            (self.prompts_by_prompts, self.prompts_by_decodes)
            if prompts
            else (self.decodes_by_prompts, self.decodes_by_decodes)
        )
        return waiting * (1.0 + by_prompts * others_prompts + by_decodes * others_decodes)


@dataclass(frozen=True, slots=True)
class Warming:
    """A worker's n-th step of decodes in a row, after a rest or a prompt, takes first_s * ratio ** (n - 1) more."""

    first_s: float
    ratio: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.first_s < math.inf and 0.0 <= self.ratio < 1.0):
            raise ValueError(f"warming by {self.first_s} s, then {self.ratio} of it: at least 0 s, a ratio below 1")

    def extra_s(self, in_a_row: int) -> float:
        """Of the step behind so many others."""
        return self.first_s * self.ratio**in_a_row

    def mean_s(self, start: int, stop: int) -> float:
        """Of steps start to stop - 1 of a row."""
        return sum(map(self.extra_s, range(start, stop))) / (stop - start)


@dataclass(frozen=True, slots=True)
class Jitter:
    """A machine is now faster, now slower: for hold_s at a time a worker's steps take one of these times as long.

    Each factor is as likely as the others. Worker, kind of step and time tell which: a run can be repeated.
    """

    hold_s: float
    prompts: tuple[float, ...]  # of steps with prompt tokens
    decodes: tuple[float, ...]
    fronts_s: tuple[float, ...] = (0.0,)  # what a request's way to its worker takes more than usual; less is negative

    def __post_init__(self) -> None:
        if not 0.0 < self.hold_s < math.inf:
            raise ValueError(f"hold_s is {self.hold_s}; it must be above 0")
        for name in ("prompts", "decodes"):
            factors = getattr(self, name)
            if not factors or not all(0.0 < one < math.inf for one in factors):
                raise ValueError(f"{name} are {list(factors)}; there must be factors, all above 0")
        if not self.fronts_s or not all(map(math.isfinite, self.fronts_s)):
            raise ValueError(f"fronts_s are {list(self.fronts_s)}; there must be numbers of seconds")

    def factor(self, worker: int, prompts: bool, now_s: float) -> float:
        """Of a step that begins now; `worker`: any number of its own."""
        factors = self.prompts if prompts else self.decodes
        return _drawn(factors, 2 * worker + prompts, int(now_s / self.hold_s))

    def front_s(self, request: int) -> float:
        """More, or less, of this request's."""
        return _drawn(self.fronts_s, _FRONTS, request)


def _drawn(values: tuple[float, ...], name: int, index: int) -> float:
    return values[_mixed(name, index) * len(values) >> 64]


def _mixed(name: int, index: int) -> int:
    """64 bits that look random (the finalizer of splitmix64)."""
    bits = (name * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03) & _WORD
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & _WORD
    return bits ^ bits >> 31


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """The whole cluster."""

    workers: tuple[WorkerSpec, ...]
    block_bytes: int  # KV of one block, all layers
    link: LinkSpec
    delays: Delays = field(default_factory=Delays)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    round_robin: bool = False  # instead of the least predicted latency
    max_in_flight: int = 1024  # at the router; one more is rejected
    status_s: float = 1.0  # between two accounts that a worker gives of itself
    slowdown: Slowdown | None = None  # of workers that share one machine; None: each has its own
    warming: Warming | None = None  # of decodes; None: every step is as fast as in a long row
    jitter: Jitter | None = None  # None: the same step always takes the same time

    def __post_init__(self) -> None:
        names = [worker.worker_id for worker in self.workers]
        if len(set(names)) != len(names):
            raise ValueError(f"worker ids {names}: each must be there once")
        if not any(worker.role is Role.DECODE for worker in self.workers):
            raise ValueError("a cluster needs a decode worker")
        if len({worker.block_size for worker in self.workers}) != 1:
            raise ValueError("all workers must have one block size")

    @property
    def gpus(self) -> float:
        return sum(worker.gpus for worker in self.workers)


# ---- what happens to a cluster ----


@dataclass(frozen=True, slots=True)
class WorkerDown:
    """It dies; what it holds is lost."""

    at_s: float
    worker_id: str


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A dead worker starts again, empty."""

    at_s: float
    worker_id: str


@dataclass(frozen=True, slots=True)
class RoleChange:
    """It takes no more requests, ends those it has, and comes back `takes_s` later in another role."""

    at_s: float
    worker_id: str
    role: Role
    takes_s: float = 0.0


ClusterEvent = WorkerDown | WorkerUp | RoleChange
