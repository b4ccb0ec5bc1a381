"""Run requests through a cluster of prompt and token machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placement.compat.errors import CannotServe, ProfileError
from placement.compat.requests import Floats, Requests
from placement.compat.splitwise.cluster import walk
from placement.compat.splitwise.curves import Curve, Machines, Model
from placement.compat.splitwise.state import PROMPT_POOL, TOKEN_POOL, lists_bytes, new_state

MAX_LISTS_BYTES = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class Timings:
    """What became of the requests, in the order of Requests."""

    ttft_s: Floats
    tbt_s: Floats  # (end - first token) / output tokens: Splitwise divides by all of them
    e2e_s: Floats


def simulate(
    model: Model, prompt: Sequence[Machines], token: Sequence[Machines], requests: Requests, rate_scale: float = 1.0
) -> Timings:
    """Every request to its end. Raises CannotServe if some never come to it."""
    kinds = [(one.curve, PROMPT_POOL) for one in prompt for _ in range(one.num)]
    kinds += [(one.curve, TOKEN_POOL) for one in token for _ in range(one.num)]
    requests.check_clock(rate_scale)
    _check(model, [curve for curve, _ in kinds], requests)
    state = new_state(
        np.array([[curve.tokens, curve.prompt_s, curve.token_s] for curve, _ in kinds]),
        np.array([curve.room_bytes for curve, _ in kinds]),
        np.array([home for _, home in kinds]),
        model.weight_bytes,
        requests.arrival_s / rate_scale,
        requests.prompt_tokens,
        requests.output_tokens,
        model.kv_bytes,
    )
    ended = walk(state, model.kv_bytes)
    arrival, first, exits = (state.request[name] for name in ("arrival", "first_token", "exits"))
    if ended < len(requests):
        stuck = np.flatnonzero(exits < 0)
        raise CannotServe(
            f"{requests.where(int(stuck[0]))}: it and {len(stuck) - 1} others never end; "
            "the machines wait for memory that they hold themselves"
        )
    return Timings(first - arrival, (exits - first) / requests.output_tokens, exits - arrival)


def _check(model: Model, curves: Sequence[Curve], requests: Requests) -> None:
    points = {len(curve.tokens) for curve in curves}
    if len(points) != 1:
        raise ProfileError(f"the curves have {' and '.join(map(str, sorted(points)))} points; all must have as many")
    size = lists_bytes(len(curves), len(requests))
    if size > MAX_LISTS_BYTES:
        raise ProfileError(
            f"{len(requests):,} requests on {len(curves):,} machines need lists of {size / 1024**3:,.0f} GiB; "
            f"at most {MAX_LISTS_BYTES // 1024**3} GiB"
        )
    for curve in curves:
        if model.weight_bytes >= curve.room_bytes:
            raise ProfileError(
                f"{curve.gpu} tp={curve.tp} has {curve.room_bytes:,} bytes; the weights need {model.weight_bytes:,}"
            )
    most = (min(curve.room_bytes for curve in curves) - model.weight_bytes) // model.kv_bytes
    tokens = requests.prompt_tokens + requests.output_tokens
    bad = np.flatnonzero(tokens > most)
    if len(bad):
        one = int(bad[np.argmin(requests.row[bad])])
        raise CannotServe(f"{requests.where(one)}: has {tokens[one]:,} tokens; the smallest machine holds {most:,}")
