"""Which prefill worker and which decode worker serve a request: chosen together, from what is known of their load.

Pure but for a round-robin counter: plain views in, one `Placement` out. The router and the simulator run this code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from pdserve.errors import NoWorker, PromptTooLong, QueueFull
from scheduling.latency import LatencyModel

AS_SOON = 1.125
"""Predictions within an eighth of the least are one. What equal workers measure of themselves differs by up to a tenth;
the one that seems a hundredth faster would get everything that comes while nobody waits."""
AS_LIGHT = AS_SOON * AS_SOON
"""The same for a product of two predictions."""


class Role(Enum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class RequestView:
    """What a policy knows of a request."""

    prompt_tokens: int
    max_tokens: int  # output tokens at most
    deadline_left_s: float
    cached_tokens: Mapping[str, int] = field(default_factory=dict)  # by worker: of the prompt, expected to be there

    def cached_on(self, worker: WorkerLoadView) -> int:
        """Tokens of the prompt that the worker is not expected to compute; fewer than there are."""
        return self.cached_tokens.get(worker.worker_id, 0)


@dataclass(frozen=True, slots=True)
class WorkerLoadView:
    """What a policy knows of a worker: its last status and what was sent to it or ended since."""

    worker_id: str
    role: Role
    alive: bool
    num_blocks: int  # of the whole pool
    block_size: int
    free_blocks: int  # that a new sequence may take, evictable cached ones included
    promised_blocks: int  # to running sequences, for growth
    num_sequences: int  # sent to it and not ended
    uncomputed_tokens: int  # prompt tokens that it has still to compute
    chunk_tokens: int  # token budget of one step
    latency: LatencyModel

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def steps_for(self, prompt_tokens: int) -> int:
        return -(-prompt_tokens // self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class Placement:
    """Who serves a request; without a prefill worker the decode worker computes the prompt itself."""

    prefill_worker: str | None
    decode_worker: str
    predicted_ttft_s: float  # 0 where nothing is known of the latency
    predicted_prefill_s: float  # the part of it that is the own prompt's, on an idle worker
    cached_tokens: int = 0  # of the prompt, that whoever computes it is expected to have


class RoutingPolicy(Protocol):
    """Chooses; must not keep or change the views."""

    def choose(self, request: RequestView, workers: Sequence[WorkerLoadView], now: float) -> Placement:
        """Place one request.

        Errors: `NoWorker` when no decode worker lives, `PromptTooLong` when no pool could ever hold the prompt,
        `QueueFull` when the predicted wait exceeds the deadline.
        """
        ...


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """What the policies share."""

    local_prefill_max_tokens: int = 0  # prompts up to this long are computed on the decode worker: no trip
    growth_tokens: int = 64  # output for which a decode worker should have room before it is preferred


@dataclass(frozen=True, slots=True)
class Candidates:
    """The live workers that can hold a request; `prefill` empty: computed on the decode worker."""

    prefill: tuple[WorkerLoadView, ...]
    decode: tuple[WorkerLoadView, ...]


def candidates(request: RequestView, workers: Sequence[WorkerLoadView], config: RoutingConfig) -> Candidates:
    """Who may be chosen at all. Errors: `NoWorker`, `PromptTooLong`."""
    live = [worker for worker in workers if worker.alive]
    decode = [worker for worker in live if worker.role is Role.DECODE]
    if not decode:
        raise NoWorker("no decode worker is up", retry_after_s=2.0)
    tokens = request.prompt_tokens + 1
    fitting = tuple(worker for worker in decode if worker.blocks_for(tokens) <= worker.num_blocks)
    if not fitting:
        limit = max(worker.num_blocks * worker.block_size for worker in decode) - 1
        raise PromptTooLong(f"prompt has {request.prompt_tokens:,} tokens, the KV pool holds {limit:,}", field="prompt")
    if request.prompt_tokens <= config.local_prefill_max_tokens:
        return Candidates((), fitting)
    prefill = (worker for worker in live if worker.role is Role.PREFILL)
    return Candidates(tuple(w for w in prefill if w.blocks_for(request.prompt_tokens) <= w.num_blocks), fitting)


def _place(request: RequestView, prefill: WorkerLoadView | None, decode: WorkerLoadView) -> Placement:
    computing = prefill or decode
    ttft_s = predicted_ttft_s(request, computing)
    if ttft_s > request.deadline_left_s > 0.0:
        raise QueueFull(
            f"first token predicted in {ttft_s:.3f} s, the deadline is in {request.deadline_left_s:.3f} s",
            retry_after_s=max(0.1, round(ttft_s - request.deadline_left_s, 3)),
        )
    alone_s, cached = _alone_s(request, computing), request.cached_on(computing)
    return Placement(prefill.worker_id if prefill else None, decode.worker_id, ttft_s, alone_s, cached)


def _alone_s(request: RequestView, worker: WorkerLoadView) -> float:
    """What is not cached of the own prompt, on an idle worker."""
    cached = request.cached_on(worker)
    return worker.latency.prefill_s(request.prompt_tokens - cached, worker.chunk_tokens, cached)


def predicted_ttft_s(request: RequestView, worker: WorkerLoadView) -> float:
    """Queued work ahead, then what is not cached of the own prompt."""
    cached = request.cached_on(worker)
    own_tokens = request.prompt_tokens - cached
    return worker.latency.predicted_ttft_s(worker.uncomputed_tokens, own_tokens, worker.chunk_tokens, cached)


def _tokens_until_token_one(request: RequestView, worker: WorkerLoadView) -> int:
    """What `predicted_ttft_s` is the time of."""
    return worker.uncomputed_tokens + request.prompt_tokens - request.cached_on(worker)


def headroom_blocks(request: RequestView, worker: WorkerLoadView, growth_tokens: int) -> int:
    """Blocks left on a decode worker after the prompt, this request's first growth and what is promised; may be < 0."""
    need = worker.blocks_for(request.prompt_tokens + min(request.max_tokens, growth_tokens))
    return worker.free_blocks - worker.promised_blocks - need


def _as_fast_as_others(request: RequestView, workers: tuple[WorkerLoadView, ...]) -> tuple[WorkerLoadView, ...]:
    """Workers of one role; those without a latency model get that of the median one that has one."""
    known = [worker.latency for worker in workers if worker.latency.coefficients.known]
    if not known or len(known) == len(workers):
        return workers
    ordered = sorted(known, key=lambda latency: latency.prefill_s(request.prompt_tokens, workers[0].chunk_tokens))
    median = ordered[len(ordered) // 2]
    return tuple(w if w.latency.coefficients.known else replace(w, latency=median) for w in workers)


def _as_soon_as_any(request: RequestView, workers: Sequence[WorkerLoadView]) -> list[WorkerLoadView]:
    """Those whose token 1 is predicted no later than can be told from the least, and in time; in their order."""
    waits_s = [predicted_ttft_s(request, worker) for worker in workers]
    least_s = min(waits_s)
    limit_s = max(least_s, min(least_s * AS_SOON, request.deadline_left_s))
    return [worker for worker, wait_s in zip(workers, waits_s, strict=True) if wait_s <= limit_s]


def _burden(request: RequestView, worker: WorkerLoadView) -> float:
    """What the request waits for token 1, times what the sequences there, itself among them, then wait for their next.

    A product: a tenth more of the one weighs as much as a tenth more of the other, whatever both are in seconds. Each
    step carries the decodes too; each sequence that is there already waits as long as this prompt takes.
    """
    c, sequences = worker.latency.coefficients, worker.num_sequences
    own_tokens = request.prompt_tokens - request.cached_on(worker)
    context = max(0, (worker.num_blocks - worker.free_blocks) * worker.block_size - worker.uncomputed_tokens)
    decodes_s = sequences * c.per_decode_sequence_s + context * c.per_context_token_s
    joint_steps = worker.steps_for(worker.uncomputed_tokens + own_tokens)
    first_s = predicted_ttft_s(request, worker) + joint_steps * decodes_s
    step_s = worker.latency.predicted_tpot_s(sequences + 1, context + request.prompt_tokens)
    own_s = _alone_s(request, worker) - worker.steps_for(own_tokens) * c.base_s
    return first_s * (step_s + own_s * sequences / (sequences + 1))


def _least_burdened(request: RequestView, workers: Sequence[WorkerLoadView]) -> list[WorkerLoadView]:
    """Of those that are in time, if any is, where the burden is no more than can be told from the least; in order."""
    waits_s = [predicted_ttft_s(request, worker) for worker in workers]
    latest_s = max(min(waits_s), request.deadline_left_s)
    in_time = [worker for worker, wait_s in zip(workers, waits_s, strict=True) if wait_s <= latest_s]
    burdens = [_burden(request, worker) for worker in in_time]
    limit = min(burdens) * AS_LIGHT
    return [worker for worker, burden in zip(in_time, burdens, strict=True) if burden <= limit]


class LeastPredictedLatency:
    """Prefill: least predicted TTFT, as far as that can be told, then the fewest tokens to compute until token 1, then
    the longest cached prefix. Decode: room first, then fewest sequences, then the longest cached prefix; where the
    decode worker computes the prompt, the same among those with room where that is the least burden.

    A worker of which nothing is known yet counts as fast as the others of its role. Without any latency model the
    predictions tie: a cached prefix draws no more requests than its tokens are worth. Full ties go round robin.
    """

    def __init__(self, config: RoutingConfig | None = None) -> None:
        self._config = config or RoutingConfig()
        self._turn = 0

    def choose(self, request: RequestView, workers: Sequence[WorkerLoadView], now: float) -> Placement:
        found = candidates(request, workers, self._config)
        chosen = Candidates(_as_fast_as_others(request, found.prefill), _as_fast_as_others(request, found.decode))
        self._turn += 1
        prefill = self._least_prefill(request, chosen.prefill) if chosen.prefill else None
        return _place(request, prefill, self._best_decode(request, chosen.decode, computes=prefill is None))

    def _rotated(self, workers: tuple[WorkerLoadView, ...]) -> tuple[WorkerLoadView, ...]:
        """`min` takes the first of equals: who that is goes round."""
        turn = self._turn % len(workers)
        return workers[turn:] + workers[:turn]

    def _least_prefill(self, request: RequestView, workers: tuple[WorkerLoadView, ...]) -> WorkerLoadView:
        def score(worker: WorkerLoadView) -> tuple[int, int, int]:
            tokens = _tokens_until_token_one(request, worker)
            return (tokens, -request.cached_on(worker), worker.num_sequences)

        return min(_as_soon_as_any(request, self._rotated(workers)), key=score)

    def _best_decode(
        self, request: RequestView, workers: tuple[WorkerLoadView, ...], *, computes: bool
    ) -> WorkerLoadView:
        rooms = {w.worker_id: headroom_blocks(request, w, self._config.growth_tokens) for w in workers}
        enough = min(0, max(rooms.values()))
        roomy: Sequence[WorkerLoadView] = [w for w in self._rotated(workers) if rooms[w.worker_id] >= enough]

        def score(worker: WorkerLoadView) -> tuple[int, int, int]:
            return (worker.num_sequences, -request.cached_on(worker), -rooms[worker.worker_id])

        return min(_least_burdened(request, roomy) if computes else roomy, key=score)


class RoundRobin:
    """Each role in turn, blind to load: the baseline that a policy must beat."""

    def __init__(self, config: RoutingConfig | None = None) -> None:
        self._config = config or RoutingConfig()
        self._turn = 0

    def choose(self, request: RequestView, workers: Sequence[WorkerLoadView], now: float) -> Placement:
        chosen = candidates(request, workers, self._config)
        turn = self._turn
        self._turn += 1
        prefill = chosen.prefill[turn % len(chosen.prefill)] if chosen.prefill else None
        return _place(request, prefill, chosen.decode[turn % len(chosen.decode)])
