"""The highest rate per GPU at which a placement meets the criterion, for every placement that is possible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from placement.compat.distserve.configurations import Configuration
from placement.compat.distserve.goodput import Bisection, Goodput, Slo
from placement.compat.distserve.instance import Backend, of_configuration
from placement.compat.distserve.profile import ModelProfile
from placement.compat.distserve.simulate import meets
from placement.compat.requests import Requests


def goodput(
    model: ModelProfile, backend: Backend, one: Configuration, requests: Requests, slo: Slo, bisection: Bisection
) -> float:
    """By bisection, with the requests' arrivals at one per second scaled to each rate.

    0 for a placement that cannot hold a prompt. Raises CannotServe for a request that no placement can decode.
    """
    instance = of_configuration(model, backend, one)
    instance.check_decode(requests)
    low, high = 0.0, bisection.max_rate_per_gpu if instance.holds(requests) else 0.0
    while high - low > bisection.resolution:
        middle = (low + high) / 2
        if not low < middle < high:  # the resolution is finer than numbers are
            break
        if meets(instance, requests, middle * one.gpus, slo):
            low = middle
        else:
            high = middle
    return low


def search(
    model: ModelProfile,
    backend: Backend,
    configurations: Iterable[Configuration],
    requests: Requests,
    slo: Slo,
    bisection: Bisection,
) -> Iterator[Goodput]:
    """One row after the other, in the order of the configurations."""
    for one in configurations:
        yield Goodput(one, goodput(model, backend, one, requests, slo, bisection))
