"""Workloads made from workloads: cut, thinned, drawn again, faster or slower. Each gives a new one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.workload.arrivals import Arrivals
from placement.workload.errors import WorkloadError
from placement.workload.workload import Floats, Ints, Prefixes, Workload


def head(workload: Workload, num: int) -> Workload:
    """The first num requests."""
    return workload.take(np.arange(min(num, len(workload))))


def sample(workload: Workload, num: int, dice: np.random.Generator) -> Workload:
    """num of the requests at their times, each with the same chance: the rate falls with the number."""
    return workload.take(np.sort(dice.choice(len(workload), min(num, len(workload)), replace=False)))


def within_lengths(
    workload: Workload,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    max_total_tokens: int | None = None,
) -> Workload:
    """Longer requests are left out."""
    prompt, output = workload.prompt_tokens, workload.output_tokens
    keep = np.ones(len(workload), bool)
    for lengths, most in (
        (prompt, max_prompt_tokens),
        (output, max_output_tokens),
        (prompt + output, max_total_tokens),
    ):
        if most is not None:
            keep &= lengths <= most
    return workload.take(np.flatnonzero(keep))


def clipped(workload: Workload, max_prompt_tokens: int, max_output_tokens: int) -> Workload:
    """Longer prompts and outputs are cut to the limit, prefix blocks with them: the number of requests stays."""
    prompt = np.minimum(workload.prompt_tokens, max_prompt_tokens)
    prefixes = None if workload.prefixes is None else _shortened(workload.prefixes, prompt)
    output = np.minimum(workload.output_tokens, max_output_tokens)
    return replace(workload, prompt_tokens=prompt, output_tokens=output, prefixes=prefixes)


def _shortened(prefixes: Prefixes, prompt_tokens: Ints) -> Prefixes:
    had = np.diff(prefixes.offsets)
    kept = np.minimum(had, -(-prompt_tokens // prefixes.block_tokens))
    place = np.arange(len(prefixes.ids)) - np.repeat(prefixes.offsets[:-1], had)
    offsets = np.concatenate(([0], np.cumsum(kept))).astype(np.int64)
    return Prefixes(prefixes.ids[place < np.repeat(kept, had)], offsets, prefixes.block_tokens)


def within_time(workload: Workload, start_s: float = 0.0, end_s: float = float("inf")) -> Workload:
    """Arrivals in [start_s, end_s), counted from start_s."""
    kept = workload.take(np.flatnonzero((start_s <= workload.arrival_s) & (workload.arrival_s < end_s)))
    return replace(kept, arrival_s=kept.arrival_s - start_s)


def sped_up(workload: Workload, factor: float) -> Workload:
    """Times divided by the factor: the same burstiness at factor times the rate."""
    return replace(workload, arrival_s=workload.arrival_s / factor)


def at_rate(workload: Workload, rate: float) -> Workload:
    """Sped up, or slowed down, to a mean rate. Raises WorkloadError where it has none of its own."""
    if workload.rate <= 0:
        raise WorkloadError(f"the workload has {len(workload)} requests and no two times: it has no rate to scale")
    return sped_up(workload, rate / workload.rate)


def with_arrivals(workload: Workload, arrivals: Arrivals, dice: np.random.Generator) -> Workload:
    """The same requests in the same order at other times."""
    return replace(workload, arrival_s=arrivals.times(len(workload), dice), timed=True)


def bootstrap(workload: Workload, num: int, dice: np.random.Generator, run: int = 1) -> Workload:
    """num requests drawn with replacement, in runs of consecutive ones with the gaps before them.

    A run of 1 breaks every tie between neighbours; runs longer than a burst keep bursts whole (the block bootstrap).
    """
    starts = dice.integers(len(workload), size=-(-num // run))
    rows = ((starts[:, None] + np.arange(run)) % len(workload)).ravel()[:num]
    drawn = workload.take(rows)
    return replace(drawn, arrival_s=np.cumsum(_gaps(workload)[rows])) if workload.timed else drawn


def _gaps(workload: Workload) -> Floats:
    """Before each request; before the first one, the mean."""
    mean_s = workload.duration_s / max(1, len(workload) - 1)
    return np.concatenate(([mean_s], np.diff(workload.arrival_s)))


def repeated(workload: Workload, num: int) -> Workload:
    """The workload over and over until it has num requests, a mean gap between the rounds.

    Every round has prefix blocks and sessions of its own: a second round would else find all of the first one cached.
    """
    if num <= len(workload):
        return head(workload, num)
    rounds, rows = np.divmod(np.arange(num), len(workload))
    longer = workload.take(rows)
    period_s = workload.duration_s + _gaps(workload)[0]
    prefixes, session = longer.prefixes, longer.session
    if prefixes is not None and len(prefixes.ids):
        distinct, dense = np.unique(prefixes.ids, return_inverse=True)
        ids = dense + len(distinct) * np.repeat(rounds, np.diff(prefixes.offsets))
        prefixes = replace(prefixes, ids=ids)
    if session is not None:
        session = np.where(session < 0, session, session + rounds * (int(session.max()) + 1))
    times = longer.arrival_s + rounds * period_s
    return replace(longer, arrival_s=times, prefixes=prefixes, session=session)
