"""What workers of one machine cost one another: some are kept busy alone, then beside others."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from bench.load.prompts import Prompts
from bench.load.target import Target
from bench.profiler.alone import REST_S, Totals, mean_step_s, totals_of
from bench.served.server import Server, ServerFailed
from placement.simulator.cluster import Slowdown
from placement.workload.workload import Workload

ASKING = 2  # clients for each worker that computes prompts all the time: one prompt always waits
CLUSTERS = {"split": ["--prefill", "1", "--decode", "1"], "pair": ["--prefill", "0", "--decode", "2"]}
PROMPTS, DECODES = 0, 1  # places in Took
WHO_PREFILLS = {"split": "prefill", "pair": "decode"}  # role


@dataclass(frozen=True, slots=True)
class Load:
    """What keeps them busy."""

    prompt_tokens: int
    chunk_tokens: int  # prompts of one step
    output_tokens: int  # of those that decode; some end within a window
    seconds: float  # each window


@dataclass(frozen=True, slots=True)
class Window:
    """A cluster, and what it is kept busy with for a while."""

    cluster: str
    prompts: int  # workers that compute prompts
    decodes: int  # workers that decode
    rested: bool = False  # prompts are of one step, with rests before them


P_ALONE, P_BESIDE_D, D_ALONE = Window("split", 1, 0), Window("split", 1, 1), Window("split", 0, 1)
RESTED_ALONE, RESTED_BESIDE = Window("split", 1, 0, rested=True), Window("split", 1, 1, rested=True)
TWO_P, D_OF_PAIR, TWO_D = Window("pair", 2, 0), Window("pair", 0, 1), Window("pair", 0, 2)
WINDOWS = (P_ALONE, P_BESIDE_D, D_ALONE, RESTED_ALONE, RESTED_BESIDE, TWO_P, D_OF_PAIR, TWO_D)


Took = tuple[float, float]
"""Means of prompts' steps, as their worker counts them, and of times between tokens, as clients see them; nan: none.

Not of decodes' steps: where all cores compute, an engine waits for one between its steps too.
"""


def one_round(started: Mapping[str, tuple[Server, Target]], load: Load) -> dict[Window, Took]:
    """Every window once; the cluster that has nothing to do is held stopped."""
    found = {}
    for name, (server, target) in started.items():
        server.resume()
        before = totals_of(server)
        for window in (one for one in WINDOWS if one.cluster == name):
            gaps_s = _keep_busy(target, load, window)
            after = totals_of(server)
            found[window] = _took(before, after, window, gaps_s)
            before = after
        server.park()
    return found


def slowdown_of(rounds: Sequence[Mapping[Window, Took]], at_once: float) -> Slowdown:
    """What each costs the other while both compute, beyond the wait for a core; never less than nothing.

    Who has rested beside one that computed finds its caches full of the other's: what a prompt then takes longer is
    told apart.
    """
    turns = max(1.0, 2.0 / at_once)

    def cost(kind: int, alone: Window, beside: Window) -> float:
        return max(0.0, statistics.median(one[beside][kind] / one[alone][kind] / turns - 1.0 for one in rounds))

    by_decodes = cost(PROMPTS, P_ALONE, P_BESIDE_D)
    beside = turns * (1.0 + by_decodes)
    rested_s = statistics.median(one[RESTED_BESIDE][PROMPTS] / beside - one[RESTED_ALONE][PROMPTS] for one in rounds)
    return Slowdown(
        at_once,
        cost(PROMPTS, P_ALONE, TWO_P),
        by_decodes,
        cost(DECODES, D_ALONE, P_BESIDE_D),
        cost(DECODES, D_OF_PAIR, TWO_D),
        max(0.0, rested_s),
    )


def _took(before: Totals, after: Totals, window: Window, gaps_s: Sequence[float]) -> Took:
    if window.decodes and not gaps_s:
        raise ServerFailed("no output ended in time; is the machine overloaded?")
    step_s = mean_step_s(before, after, WHO_PREFILLS[window.cluster]) if window.prompts else math.nan
    return step_s, statistics.fmean(gaps_s) if gaps_s else math.nan


def _keep_busy(target: Target, load: Load, window: Window) -> list[float]:
    """Workers with prompts of one token of output, and others with long outputs: what all_ask has.

    Long prompts: the fewer requests, the less the front and the clients, who want the same cores, are in what is seen.
    """
    asking, rest_s, tokens = (1, REST_S, load.chunk_tokens) if window.rested else (ASKING, 0.0, load.prompt_tokens)
    lengths = [(tokens, 1)] * asking * window.prompts
    lengths += [(load.prompt_tokens, load.output_tokens)] * window.decodes
    return asyncio.run(all_ask(target, lengths, rest_s, load.seconds))


async def all_ask(target: Target, lengths: Sequence[tuple[int, int]], rest_s: float, seconds: float) -> list[float]:
    """A client for each of them; when the time is over all hang up, so that none computes alone at the end.

    The mean time between tokens of each output that ended, without that to the second token, which a handoff is in.
    """
    gaps_s: list[float] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for client, (prompt_tokens, output_tokens) in enumerate(lengths):
                group.create_task(_keep_asking(target, prompt_tokens, output_tokens, client, rest_s, gaps_s))
    return gaps_s


async def _keep_asking(
    target: Target, prompt_tokens: int, output_tokens: int, client: int, rest_s: float, gaps_s: list[float]
) -> None:
    num = 1000  # prompts, each used once
    workload = Workload.of(np.full(num, prompt_tokens), np.full(num, output_tokens), np.zeros(num))
    prompts = Prompts(workload, target.vocab_size, time.time_ns() % (1 << 40) + client, target.wants_text)
    pool = target.pool()
    try:
        for index in range(num):
            answer = await pool.ask(target.request(prompts.of(index), output_tokens))
            if len(answer.gaps_s) > 1:
                gaps_s.append(sum(answer.gaps_s[1:]) / (output_tokens - 2))
            await asyncio.sleep(rest_s)
    finally:
        await pool.close()
