"""`--event`: what is to happen to the workers of a simulation, from the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass

from pdserve.settings import ConfigError
from placement.search.candidate import Candidate
from placement.simulator.cluster import ClusterEvent, RoleChange, WorkerDown, WorkerUp
from scheduling.routing import Role

MAX_SECONDS = 10_000_000  # of a run: workers report every second of it
_LIKE = "30:down:decode-0, 60:up:decode-0 or 45:role:prefill-1:decode:takes=5"


@dataclass(frozen=True, slots=True)
class AskedEvent:
    """An event, and how it was written."""

    text: str
    event: ClusterEvent


def asked_event(text: str) -> AskedEvent:
    """S:down:WORKER, S:up:WORKER or S:role:WORKER:ROLE[:takes=S]; argparse tells the user otherwise."""
    parts = text.split(":")
    what = parts[1] if len(parts) > 1 else ""
    lengths = {"down": (3,), "up": (3,), "role": (4, 5)}.get(what)
    if lengths is None or len(parts) not in lengths or not parts[2]:
        raise argparse.ArgumentTypeError(f"{text!r} must be like {_LIKE}")
    at_s = _seconds(text, "the time", parts[0])
    if what != "role":
        return AskedEvent(text, WorkerDown(at_s, parts[2]) if what == "down" else WorkerUp(at_s, parts[2]))
    roles = [role.value for role in Role]
    if parts[3] not in roles:
        raise argparse.ArgumentTypeError(f"{text!r}: the role is {parts[3]!r}; it must be {' or '.join(roles)}")
    name, equals, takes = (parts[4] if len(parts) == 5 else "takes=0").partition("=")
    if name != "takes" or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be like {_LIKE}")
    return AskedEvent(text, RoleChange(at_s, parts[2], Role(parts[3]), _seconds(text, "takes", takes)))


def _seconds(text: str, name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {name} is {value!r}; it must be seconds, from 0 to {MAX_SECONDS:,}"
        )
    return seconds


def checked_events(asked: Iterable[AskedEvent], candidate: Candidate) -> list[ClusterEvent]:
    """In order of time. Errors: ConfigError for the first that the placement does not have, or that cannot be then."""
    roles = {f"{role.value}-{i}": role for role, count in _pools(candidate).items() for i in range(count)}
    down_since: dict[str, float] = {}
    ordered = sorted(asked, key=lambda one: one.event.at_s)
    for one in ordered:
        name = one.event.worker_id
        if name not in roles:
            raise ConfigError([f"--event {one.text}: {_unknown(name, roles, candidate)}"])
        down_s = down_since.get(name)
        match one.event:
            case WorkerUp():
                wrong = "" if down_s is not None else f"{name} is up then"
                down_since.pop(name, None)
            case WorkerDown(at_s):
                wrong = "" if down_s is None else f"{name} is down since {down_s:g} s"
                down_since[name] = at_s
            case RoleChange(role=role):
                wrong = _no_change(name, role, roles[name], down_s, candidate)
                roles[name] = role
        if wrong:
            raise ConfigError([f"--event {one.text}: {wrong}"])
    return [one.event for one in ordered]


def _no_change(name: str, role: Role, before: Role, down_s: float | None, candidate: Candidate) -> str:
    """Why a role cannot change; empty when it can."""
    if candidate.prefill is None:
        return "the workers are colocated, nothing is known of links between them: give --prefill"
    if down_s is not None:
        return f"{name} is down since {down_s:g} s"
    return f"{name} is a {role.value} worker already" if role is before else ""


def _pools(candidate: Candidate) -> dict[Role, int]:
    prefill = {} if candidate.prefill is None else {Role.PREFILL: candidate.prefill.workers}
    return {**prefill, Role.DECODE: candidate.decode.workers}


def _unknown(name: str, workers: Iterable[str], candidate: Candidate) -> str:
    if (whole := name.rpartition(".")[0]) in set(workers):
        return f"{name} is a part of {whole}, which dies and changes as a whole: name that"
    ranges = [_range(role, count) for role, count in _pools(candidate).items()]
    return f"there is no worker {name}; there are {' and '.join(ranges)}"


def _range(role: Role, count: int) -> str:
    first = f"{role.value}-0"
    return first if count == 1 else f"{first} to {role.value}-{count - 1}"
