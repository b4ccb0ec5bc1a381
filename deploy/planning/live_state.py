"""What a router said of itself, checked: its workers, and what came lately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from placement.workload.request import MAX_TOKENS
from placement.workload.workload import Floats, Ints, Workload
from scheduling.latency import LatencyCoefficients, model_from_json
from scheduling.routing import Role

_COLUMNS = ("arrival_s", "prompt_tokens", "completion_tokens", "cached_tokens")
_MOST = 10**15  # of what is counted
_PAUSE_S = 10.0  # without a request, at least
_PAUSE_GAPS = 20.0  # mean gaps: of a Poisson stream one in 10^8 is as long


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
    """Requests that ended, by arrival."""

    window_s: float  # that they came within
    num_unknown: int  # others, whose output nobody knows: refused, failed
    workload: Workload  # without prefixes: what they share is not known; without pauses
    paused_s: float  # when nothing came, left out
    cached_tokens: int  # of all prompts


@dataclass(frozen=True, slots=True)
class LiveState:
    """A cluster as it is."""

    model: str
    ttft_s: float | None  # targets of its default class
    tpot_s: float | None
    local_prefill_max_tokens: int
    growth_tokens: int
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
        growth_tokens=_whole(given, "growth_tokens", 0),
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
    columns = [given.get(name) for name in _COLUMNS]
    lists = [one for one in columns if isinstance(one, list) and all(map(_is_number, one))]
    if len(lists) != len(columns) or len({len(one) for one in lists}) != 1:
        raise ValueError(f"requests: {', '.join(_COLUMNS)} must be lists of numbers, equally long")
    arrivals, (prompt, output, cached) = np.array(lists[0], np.float64), (_column(one) for one in lists[1:])
    wrong = (prompt < 1).any() or (output < 1).any() or (np.diff(arrivals) < 0.0).any()
    if wrong or max(prompt.max(initial=0), output.max(initial=0)) > MAX_TOKENS:
        raise ValueError("requests: arrivals must not go back, and each has 1 token or more of prompt and output")
    started, paused_s = _without_pauses(arrivals)
    window_s = _number(given, "window_s", 0.0)
    if window_s is None:
        raise ValueError("window_s is None; it must be a number of at least 0")
    return Recent(
        window_s, _whole(given, "num_unknown", 0), Workload.of(prompt, output, started), paused_s, int(cached.sum())
    )  # fmt: skip


def _without_pauses(arrival_s: Floats) -> tuple[Floats, float]:
    """Arrivals from 0 on, with a mean gap for each pause, and how long all were.

    A cluster is as empty after a minute without requests as after an hour; but a mean rate over both says nothing of
    the load that it carries.
    """
    gaps = np.diff(arrival_s)
    pauses = gaps > max(_PAUSE_S, _PAUSE_GAPS * gaps.mean()) if len(gaps) else np.zeros(0, bool)
    cut = np.where(pauses, gaps[~pauses].mean(), gaps) if pauses.any() else gaps
    started = np.concatenate([np.zeros(min(1, len(arrival_s))), np.cumsum(cut)])
    return started, float(gaps.sum() - cut.sum())


def _column(values: list[float]) -> Ints:
    return np.array(values, np.float64).astype(np.int64)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


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


def _shown(value: object) -> str:
    return repr(value)[:40]
