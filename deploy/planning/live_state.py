"""What a router said of itself, checked: its workers, and what came lately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from placement.workload.request import MAX_TOKENS
from placement.workload.workload import Floats, Workload
from scheduling.latency import LatencyCoefficients, model_from_json
from scheduling.routing import Role

_LENGTHS = ("prompt_tokens", "completion_tokens", "cached_tokens")
_MOST = 10**15  # of what is counted
_PAUSE_S = 10.0  # without a request, at least
_PAUSE_GAPS = 30.0  # median gaps: of a Poisson stream one in 10^9 is as long
_MANY_PAUSES = 0.1  # of the gaps
_LITTLE_S = 1.0  # between the requests that no pause parts, all together


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """One that is up."""

    id: str
    role: Role
    device: str
    num_blocks: int
    block_size: int
    block_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefix_caching: bool
    latency: LatencyCoefficients | None  # as it measured itself; None: it has not yet
    mean_sequences: float | None  # of the steps that it measured


@dataclass(frozen=True, slots=True)
class Recent:
    """Requests that came, ended or not, with lengths of those that ended."""

    window_s: float  # in which they did
    num_ended: int
    num_running: int
    oldest_running_s: float  # how long one has run
    num_unknown: int  # others, whose output nobody knows: refused, failed
    more_unknown: bool  # the router has forgotten some of them
    workload: Workload  # without prefixes: what they share is not known; without pauses
    paused_s: float  # when nothing came, left out
    cached_share: float  # of the prompts' tokens


@dataclass(frozen=True, slots=True)
class LiveState:
    """A cluster as it is."""

    model: str
    ttft_s: float | None  # targets of its default class
    tpot_s: float | None
    local_prefill_max_tokens: int
    link_bytes_per_s: float | None  # the median of its links; None: nothing has moved yet
    workers: tuple[LiveWorker, ...]
    num_down: int
    recent: Recent

    def of(self, role: Role) -> list[LiveWorker]:
        return [worker for worker in self.workers if worker.role is role]


def live_state(given: Mapping[str, object]) -> LiveState:
    """Errors: ValueError naming what is not as it should be."""
    rows = _list(given, "workers")
    slo = _object(given, "slo")
    return LiveState(
        model=_text(given, "model"),
        ttft_s=_number(slo, "ttft_s"),
        tpot_s=_number(slo, "tpot_s"),
        local_prefill_max_tokens=_whole(given, "local_prefill_max_tokens", 0),
        link_bytes_per_s=_number(given, "link_bytes_per_s"),
        workers=tuple(_worker(row) for row in rows if _is(row, "up")),
        num_down=sum(not _is(row, "up") for row in rows),
        recent=_recent(_object(given, "requests")),
    )


def _worker(row: Mapping[str, object]) -> LiveWorker:
    name, latency = _text(row, "id"), row.get("latency")
    try:
        role = Role(_text(row, "role"))
    except ValueError:
        raise ValueError(f"role of worker {name} is {row.get('role')!r}") from None
    return LiveWorker(
        id=name,
        role=role,
        device=_text(row, "device"),
        num_blocks=_whole(row, "num_blocks"),
        block_size=_whole(row, "block_size"),
        block_bytes=_whole(row, "block_bytes"),
        max_num_seqs=_whole(row, "max_num_seqs"),
        max_num_batched_tokens=_whole(row, "max_num_batched_tokens"),
        max_model_len=_whole(row, "max_model_len"),
        prefix_caching=_is(row, "prefix_caching"),
        latency=None if latency is None else model_from_json(latency, f"latency of worker {name}").coefficients,
        mean_sequences=_number(row, "mean_sequences", 0.0),
    )


def _recent(given: Mapping[str, object]) -> Recent:
    arrivals = np.array(_numbers(given, "arrival_s"), np.float64)
    prompt, output, cached = (np.array(_numbers(given, name), np.float64).astype(np.int64) for name in _LENGTHS)
    if not len(prompt) == len(output) == len(cached):
        raise ValueError(f"requests: {', '.join(_LENGTHS)} must be equally long")
    wrong = (prompt < 1).any() or (output < 1).any() or (np.diff(arrivals) < 0.0).any()
    if wrong or max(prompt.max(initial=0), output.max(initial=0)) > MAX_TOKENS:
        raise ValueError("requests: arrivals must not go back, and each has 1 token or more of prompt and output")
    started, paused_s = _without_pauses(arrivals if len(prompt) else arrivals[:0])
    # Which of those that came is how long is not known of all; what came and what ended are as a whole the same.
    row = np.arange(len(started)) * len(prompt) // max(1, len(started))
    return Recent(
        window_s=_seconds(given, "window_s"),
        num_ended=len(prompt),
        num_running=_whole(given, "num_running", 0),
        oldest_running_s=_seconds(given, "oldest_running_s"),
        num_unknown=_whole(given, "num_unknown", 0),
        more_unknown=_is(given, "more_unknown"),
        workload=Workload.of(prompt[row], output[row], started),
        paused_s=paused_s,
        cached_share=float(cached.sum() / max(1, prompt.sum())),
    )


def _without_pauses(arrival_s: Floats) -> tuple[Floats, float]:
    """Arrivals from 0 on, with a mean gap for each pause, and how long all were.

    A cluster is as empty after a minute without requests as after an hour; but a mean rate over both says nothing of
    the load that it carries. The median tells what is a pause, however long all are; but where there are many, or
    little else, it is how requests come: some at once, and again.
    """
    if len(arrival_s) < 2:
        return np.zeros(len(arrival_s)), 0.0
    gaps = np.diff(arrival_s)
    pauses = gaps > max(_PAUSE_S, _PAUSE_GAPS * float(np.median(gaps)))
    kept = gaps[~pauses]
    if pauses.mean() > _MANY_PAUSES or kept.sum() < _LITTLE_S:
        kept, pauses = gaps, np.zeros_like(pauses)
    cut = np.where(pauses, kept.mean(), gaps)
    return np.concatenate([np.zeros(1), np.cumsum(cut)]), float(gaps.sum() - cut.sum())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


def _object(given: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = given.get(name)
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} is {_shown(found)}; it must be an object")
    return found


def _list(given: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    found = given.get(name)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ValueError(f"{name} is {_shown(found)}; it must be a list of objects")
    return found


def _numbers(given: Mapping[str, object], name: str) -> list[float]:
    found = given.get(name)
    if not isinstance(found, list) or not all(map(_is_number, found)):
        raise ValueError(f"requests: {name} is {_shown(found)}; it must be a list of numbers")
    return found


def _text(given: Mapping[str, object], name: str) -> str:
    found = given.get(name)
    if not isinstance(found, str):
        raise ValueError(f"{name} is {_shown(found)}; it must be text")
    return found


def _is(given: Mapping[str, object], name: str) -> bool:
    found = given.get(name)
    if not isinstance(found, bool):
        raise ValueError(f"{name} is {_shown(found)}; it must be true or false")
    return found


def _whole(given: Mapping[str, object], name: str, least: int = 1) -> int:
    found = given.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= _MOST:
        raise ValueError(f"{name} is {_shown(found)}; it must be a whole number from {least} to {_MOST:g}")
    return found


def _number(given: Mapping[str, object], name: str, least: float = 1e-9) -> float | None:
    """A number, or null."""
    found = given.get(name)
    if found is None:
        return None
    if not isinstance(found, int | float) or not _is_number(found) or found < least:
        raise ValueError(f"{name} is {_shown(found)}; it must be a number of at least {least:g}, or null")
    return float(found)


def _seconds(given: Mapping[str, object], name: str) -> float:
    found = _number(given, name, 0.0)
    if found is None:
        raise ValueError(f"{name} is None; it must be a number of at least 0")
    return found


def _shown(value: object) -> str:
    return repr(value)[:40]
