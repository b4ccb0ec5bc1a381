"""Run requests through one placement: first tokens, exits, and whether a criterion is met."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.compat.distserve.criterion import is_below, most_late
from placement.compat.distserve.goodput import Slo
from placement.compat.distserve.instance import Instance
from placement.compat.distserve.phases import FINISHED, REFUSED, Status, walk_decode, walk_prefill
from placement.compat.distserve.pipeline import walk_pipeline
from placement.compat.errors import ProfileError
from placement.compat.requests import Floats, Requests

MS = 1000.0
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Timings:
    """What became of the requests, in the order of Requests."""

    ttft_s: Floats
    tpot_s: Floats  # (exit - first token) / output tokens: DistServe decodes the first token too
    e2e_s: Floats


def simulate(instance: Instance, requests: Requests, rate_scale: float = 1.0) -> Timings:
    """Every request to its end; arrivals come rate_scale times as fast."""
    instance.check(requests)
    requests.check_clock(rate_scale)
    arrival = requests.arrival_s * MS / rate_scale
    first_token, exits = np.empty_like(arrival), np.empty_like(arrival)
    _walk(instance, requests, arrival, (NEVER, NEVER), len(arrival), first_token, exits)
    return Timings(
        (first_token - arrival) / MS, (exits - first_token) / requests.output_tokens / MS, (exits - arrival) / MS
    )


def meets(instance: Instance, requests: Requests, rate_scale: float, slo: Slo) -> bool:
    """Whether the criterion holds at this rate; stops as soon as it cannot. The requests have been checked."""
    requests.check_clock(rate_scale)
    arrival = requests.arrival_s * MS / rate_scale
    first_token, exits = np.empty_like(arrival), np.empty_like(arrival)
    targets, allowed = (slo.ttft_s * MS, slo.tpot_s * MS), most_late(len(arrival))
    if _walk(instance, requests, arrival, targets, allowed, first_token, exits) is Status.REFUSED:
        return False
    tpot = (exits - first_token) / requests.output_tokens
    return is_below(first_token - arrival, targets[0]) and is_below(tpot, targets[1])


def _walk(
    instance: Instance,
    requests: Requests,
    arrival: Floats,
    targets: tuple[float, float],
    allowed: int,
    first_token: Floats,
    exits: Floats,
) -> Status:
    prompt, output = requests.prompt_tokens, requests.output_tokens
    if instance.colocated:
        return _ended(_pipeline(instance, requests, arrival, True, targets, allowed, first_token, exits))
    of_prefill = instance.prefill, instance.prefill_stages, instance.prefill_capacity
    status = walk_prefill(arrival, prompt, *of_prefill, first_token)
    if (
        status == FINISHED
        and allowed < len(arrival)
        and np.count_nonzero(first_token - arrival >= targets[0]) > allowed
    ):
        return Status.REFUSED
    if status == FINISHED and instance.decode_stages > 1:
        status = _pipeline(instance, requests, first_token, False, targets, allowed, first_token, exits)
    elif status == FINISHED:
        limits = instance.threshold, instance.decode_cap, instance.decode_capacity
        status = walk_decode(first_token, prompt, output, instance.decode, *limits, targets[1], allowed, exits)
    return _ended(status)


def _pipeline(
    instance: Instance,
    requests: Requests,
    arrival: Floats,
    prefills: bool,
    targets: tuple[float, float],
    allowed: int,
    first_token: Floats,
    exits: Floats,
) -> int:
    return walk_pipeline(
        arrival, requests.prompt_tokens, requests.output_tokens, prefills, instance.decode_stages,
        instance.prefill, instance.decode, instance.threshold, instance.decode_capacity, instance.decode_cap,
        targets, allowed, first_token, exits,
    )  # fmt: skip


def _ended(status: int) -> Status:
    if status in (FINISHED, REFUSED):
        return Status(status)
    raise ProfileError("the profile's coefficients give a step that takes no time or less; they must all be positive")
