"""Whether a request is taken, and who is to serve it; decided before anything is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pdserve.errors import AlreadyExists, DeadlineExceeded, QueueFull, RequestError
from router.core.active import ActiveRequest
from router.core.config import CoreConfig
from router.core.fleet import Fleet, Worker
from router.interface import RouterRequest
from scheduling.prefix_directory import chunk_keys
from scheduling.routing import RequestView, RoutingPolicy


@dataclass(frozen=True, slots=True)
class Admission:
    """Taken: these workers serve it."""

    prefill: Worker | None  # None: the decode worker computes the prompt
    decode: Worker
    cached_tokens: int  # of the prompt, that whoever computes it is expected to have
    prefix_keys: Sequence[int]  # of the prompt, for the directory; none where no worker keeps prefixes


def admit(
    request: RouterRequest,
    running: Mapping[str, ActiveRequest],
    fleet: Fleet,
    policy: RoutingPolicy,
    config: CoreConfig,
    now_s: float,
) -> Admission:
    """Take it, or raise `AlreadyExists`, `RequestError`, `QueueFull`, `DeadlineExceeded` or what the policy raises."""
    other = running.get(request.request_id)
    if other is not None:
        raise _duplicate(other.request, request)
    if len(running) >= config.max_in_flight:
        raise QueueFull(f"{len(running)} requests are running, limit {config.max_in_flight}", retry_after_s=1.0)
    left_s = request.deadline_s - now_s
    if left_s <= 0.0:
        raise DeadlineExceeded("the deadline had passed before any work was done")
    prompt_tokens, keys = len(request.prompt_token_ids), _prefix_keys(request, fleet)
    cached = fleet.prefixes.expected(keys, prompt_tokens)
    view = RequestView(prompt_tokens, request.sampling.max_tokens, left_s, cached)
    placement = policy.choose(view, fleet.loads(), now_s)
    decode = fleet.get(placement.decode_worker)
    prefill = None if placement.prefill_worker is None else fleet.get(placement.prefill_worker)
    assert decode is not None and (prefill is not None or placement.prefill_worker is None)
    return Admission(prefill, decode, placement.cached_tokens, keys)


def _prefix_keys(request: RouterRequest, fleet: Fleet) -> list[int]:
    """Salted as the workers' caches are. On the loop, for it takes a tenth of what writing the prompt to two workers
    takes, and no thread could hash without the interpreter's lock."""
    return chunk_keys(request.prompt_token_ids, request.tenant) if fleet.prefixes else []


def _duplicate(running: RouterRequest, request: RouterRequest) -> RequestError:
    """A client's retry of a running request, or another request under its name; the seed may be the router's own."""
    same = (
        running.prompt_token_ids == request.prompt_token_ids
        and replace(running.sampling, seed=0) == replace(request.sampling, seed=0)
        and running.slo == request.slo
        and running.priority == request.priority
        and running.tenant == request.tenant
    )
    if same:
        return AlreadyExists(f"request {request.request_id} is running", field="request_id")
    return RequestError(f"request id {request.request_id} is in use by another request", field="request_id")
