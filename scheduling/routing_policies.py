"""Which prefill worker and which decode worker serve a request: chosen together, from what is known of their load.

Pure but for a round-robin counter: plain views in, one `Placement` out. The router and the simulator run this code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pdserve.errors import QueueFull
from scheduling.routing import Placement, RequestView, RoutingConfig, WorkerLoadView, candidates

AS_SOON = 1.125
"""Predictions within an eighth of the least are one. What equal workers measure of themselves differs by up to a tenth;
the one that seems a hundredth faster would get everything that comes while nobody waits."""
AS_LIGHT = AS_SOON * AS_SOON
"""The same for a product of two predictions."""


def _place(request: RequestView, prefill: WorkerLoadView | None, decode: WorkerLoadView) -> Placement:
    computing = prefill or decode
    ttft_s = predicted_ttft_s(request, computing)
    if _is_late(request, computing):
        raise QueueFull(
            f"first token predicted in {ttft_s:.3f} s, the deadline is in {request.deadline_left_s:.3f} s",
            retry_after_s=max(0.1, round(ttft_s - request.deadline_left_s, 3)),
        )
    alone_s, cached = _alone_s(request, computing), request.cached_on(computing)
    return Placement(prefill.worker_id if prefill else None, decode.worker_id, ttft_s, alone_s, cached)


def _alone_s(request: RequestView, worker: WorkerLoadView) -> float:
    """What is not cached of the own prompt, on an idle worker."""
    return worker.latency.prefill_s(request.lacking_on(worker), worker.chunk_tokens, request.cached_on(worker))


def predicted_ttft_s(request: RequestView, worker: WorkerLoadView) -> float:
    """Queued work ahead, then what is not cached of the own prompt."""
    own_tokens, cached = request.lacking_on(worker), request.cached_on(worker)
    return worker.latency.predicted_ttft_s(worker.uncomputed_tokens, own_tokens, worker.chunk_tokens, cached)


def _is_late(request: RequestView, worker: WorkerLoadView) -> bool:
    """Whether its token 1 is predicted after the deadline."""
    return predicted_ttft_s(request, worker) > request.deadline_left_s > 0.0


def _tokens_until_token_one(request: RequestView, worker: WorkerLoadView) -> int:
    """What `predicted_ttft_s` is the time of."""
    return worker.uncomputed_tokens + request.lacking_on(worker)


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


def _as_fast_as(other: WorkerLoadView, worker: WorkerLoadView) -> WorkerLoadView:
    """A worker without a latency model gets that of one of the other role: it is not the faster for being unknown."""
    return worker if worker.latency.coefficients.known else replace(worker, latency=other.latency)


def _as_soon_as_any(request: RequestView, workers: Sequence[WorkerLoadView]) -> list[WorkerLoadView]:
    """Those whose token 1 is predicted no later than can be told from the least, and in time; in their order."""
    waits_s = [predicted_ttft_s(request, worker) for worker in workers]
    least_s = min(waits_s)
    limit_s = max(least_s, min(least_s * AS_SOON, request.deadline_left_s))
    return [worker for worker, wait_s in zip(workers, waits_s, strict=True) if wait_s <= limit_s]


def _joined_step_s(request: RequestView, worker: WorkerLoadView) -> float:
    """A decode step with the request in it."""
    context = worker.context_tokens + request.prompt_tokens
    return worker.latency.predicted_tpot_s(worker.num_sequences + 1, context)


def _burden(request: RequestView, worker: WorkerLoadView) -> float:
    """What the request waits for token 1, times what the sequences there, itself among them, then wait for their next.

    A product: a tenth more of the one weighs as much as a tenth more of the other, whatever both are in seconds. Each
    step carries the decodes too; each sequence that is there already waits as long as this prompt takes.
    """
    c, sequences = worker.latency.coefficients, worker.num_sequences
    own_tokens = request.lacking_on(worker)
    decodes_s = sequences * c.per_decode_sequence_s + worker.context_tokens * c.per_context_token_s
    joint_steps = worker.steps_for(worker.uncomputed_tokens + own_tokens)
    first_s = predicted_ttft_s(request, worker) + joint_steps * decodes_s
    own_s = _alone_s(request, worker) - worker.steps_for(own_tokens) * c.base_s
    return first_s * (_joined_step_s(request, worker) + own_s * sequences / (sequences + 1))


def _trip_burden(request: RequestView, prefill: WorkerLoadView, decode: WorkerLoadView) -> float:
    """The same of a request whose prompt is computed elsewhere: it delays no decode."""
    return predicted_ttft_s(request, prefill) * _joined_step_s(request, decode)


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

    Decode workers with room that lack few enough tokens of the prompt are held against the pair so chosen: the best of
    them computes it where that is no more of a burden, as far as can be told.

    A worker of which nothing is known yet counts as fast as the others of its role. Without any latency model the
    predictions tie: a cached prefix draws no more requests than its tokens are worth. Full ties go round robin.
    """

    def __init__(self, config: RoutingConfig | None = None) -> None:
        self._config = config or RoutingConfig()
        self._turn = 0

    def choose(self, request: RequestView, workers: Sequence[WorkerLoadView], now: float) -> Placement:
        found = candidates(request, workers)
        self._turn += 1
        decode = self._rotated(_as_fast_as_others(request, found.decode))
        rooms = {w.worker_id: headroom_blocks(request, w, self._config.growth_tokens) for w in decode}
        if not found.prefill:
            return _place(request, None, _best_decode(request, decode, rooms, computes=True))
        prefill = self._least_prefill(request, _as_fast_as_others(request, found.prefill))
        to = _best_decode(request, decode, rooms, computes=False)
        here = self._instead_of_trip(request, decode, rooms, prefill, to)
        return _place(request, prefill, to) if here is None else _place(request, None, here)

    def _rotated(self, workers: tuple[WorkerLoadView, ...]) -> tuple[WorkerLoadView, ...]:
        """`min` takes the first of equals: who that is goes round."""
        turn = self._turn % len(workers)
        return workers[turn:] + workers[:turn]

    def _least_prefill(self, request: RequestView, workers: tuple[WorkerLoadView, ...]) -> WorkerLoadView:
        def score(worker: WorkerLoadView) -> tuple[int, int, int]:
            tokens = _tokens_until_token_one(request, worker)
            return (tokens, -request.cached_on(worker), worker.num_sequences)

        return min(_as_soon_as_any(request, self._rotated(workers)), key=score)

    def _instead_of_trip(
        self, request: RequestView, workers: Sequence[WorkerLoadView], rooms: Mapping[str, int],
        prefill: WorkerLoadView, decode: WorkerLoadView,
    ) -> WorkerLoadView | None:  # fmt: skip
        """The decode worker that computes the prompt itself; None where that is not worth it."""
        limit = self._config.local_prefill_max_tokens
        near = [w for w in workers if request.lacking_on(w) <= limit and rooms[w.worker_id] >= 0]
        if not near:
            return None
        here = _best_decode(request, near, rooms, computes=True)
        here, decode, prefill = _as_fast_as(prefill, here), _as_fast_as(prefill, decode), _as_fast_as(here, prefill)
        trip = _is_late(request, prefill), _trip_burden(request, prefill, decode) * AS_LIGHT
        return here if (_is_late(request, here), _burden(request, here)) <= trip else None


def _best_decode(
    request: RequestView, workers: Sequence[WorkerLoadView], rooms: Mapping[str, int], *, computes: bool
) -> WorkerLoadView:
    enough = min(0, max(rooms[worker.worker_id] for worker in workers))
    roomy = [worker for worker in workers if rooms[worker.worker_id] >= enough]

    def score(worker: WorkerLoadView) -> tuple[int, int, int]:
        return (worker.num_sequences, -request.cached_on(worker), -rooms[worker.worker_id])

    return min(_least_burdened(request, roomy) if computes else roomy, key=score)


class RoundRobin:
    """Each role in turn, blind to load and to what is cached: the baseline that a policy must beat."""

    def __init__(self, config: RoutingConfig | None = None) -> None:
        self._config = config or RoutingConfig()
        self._turn = 0

    def choose(self, request: RequestView, workers: Sequence[WorkerLoadView], now: float) -> Placement:
        chosen = candidates(request, workers)
        turn = self._turn
        self._turn += 1
        splits = chosen.prefill and request.prompt_tokens > self._config.local_prefill_max_tokens
        prefill = chosen.prefill[turn % len(chosen.prefill)] if splits else None
        return _place(request, prefill, chosen.decode[turn % len(chosen.decode)])
