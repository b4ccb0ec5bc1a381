"""A running cluster as the search takes one: its requests, its workers, and how long their steps take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deploy.planning.live_state import LiveState, LiveWorker
from deploy.planning.profile import FromProfile, Imported, Measured
from pdserve.exit import StartError
from pdserve.plan_format import ANY_WORKER
from pdserve.settings import ConfigError
from placement.hardware.catalogue import GpuType
from placement.latency.fitted import PiecewiseSteps, Regime
from placement.latency.served import piecewise
from placement.latency.shape import ModelShape
from placement.search.build import Serving
from placement.search.candidate import Candidate, Pool
from placement.search.space import Space
from placement.simulator.cluster import LinkSpec
from placement.workload.source import WorkloadSource
from placement.workload.spec import WorkloadSpec
from placement.workload.workload import Ints
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import Role

MIN_REQUESTS = 100  # of fewer the lengths say too little
_FREE_LINK = LinkSpec(1e12)  # where nobody measured any
_SEQUENCES = 8  # of the step of decodes that workers are compared by
_WORKER = GpuType(ANY_WORKER, *(5 * (1.0,)), power_w=0.0, cost_per_hour=0.0)
"""Nobody asks for its rates: step times, KV memory and links are the workers' own."""


@dataclass(frozen=True, slots=True)
class Live:
    """What is searched, and what is there."""

    serving: Serving
    source: WorkloadSource
    space: Space
    present: Candidate

    @property
    def free_link(self) -> bool:
        """Whether transfers take no time, for want of knowing."""
        return self.serving.link == _FREE_LINK

    @property
    def allows_present(self) -> bool:
        """Whether what is there is of the kind and size that was asked for."""
        kind = self.space.colocated if self.present.prefill is None else self.space.split
        return kind and self.space.allows(self.present)


def live_of(state: LiveState, name: str, gpus: int | None, only: str | None, profile: FromProfile | None) -> Live:
    """`name`: of the router; `gpus`: workers, None: as many as are up. Errors: StartError, ConfigError."""
    _check(state, name)
    least = _least(state)
    serving = _serving(state, least, profile, name)
    prefill, decode = (len(state.of(role)) for role in (Role.PREFILL, Role.DECODE))
    present = Candidate(
        Pool(_WORKER, prefill) if prefill else None,
        Pool(_WORKER, decode),
        least("max_num_batched_tokens"),
        state.local_prefill_max_tokens if prefill else 0,
    )
    space = Space(
        gpus=gpus or prefill + decode,
        prefill_gpus=(_WORKER,),
        decode_gpus=(_WORKER,),
        tps=(1,),
        chunks=(present.chunk_tokens,),
        local_prefill=(state.local_prefill_max_tokens,),
        split=only != "colocated",
        colocated=only != "split",
    )
    # Drawn in runs from what came: some hundred requests over and over would be the same bursts over and over.
    spec = WorkloadSpec(source=name, resample=True)
    return Live(serving, WorkloadSource(spec, recorded=state.recent.workload), space, present)


def differing(state: LiveState) -> list[str]:
    """What of the workers is not alike, and how it is taken. A line each."""
    notes = []
    for field in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_blocks"):
        values = sorted({getattr(worker, field) for worker in state.workers})
        if len(values) > 1:
            notes.append(f"workers differ in {field}, {values[0]:,} to {values[-1]:,}; all are taken to have the least")
    if len({worker.prefix_caching for worker in state.workers}) > 1:
        notes.append("only some workers keep prefixes; prefixes are not known, so it makes no difference here")
    if len(kinds := sorted({worker.device.partition(":")[0] for worker in state.workers})) > 1:
        notes.append(f"workers are of several kinds, {' and '.join(kinds)}; they are taken as alike")
    return notes


def _check(state: LiveState, name: str) -> None:
    """Whether there is enough to plan with. Errors: StartError."""
    if not state.of(Role.DECODE):
        kind = "decode worker" if state.workers else "worker"
        raise StartError(f"--live is {name}; no {kind} is up{f', {state.num_down} are down' * bool(state.num_down)}")
    recent = state.recent
    last = f"in the last {recent.window_s:.0f} s"
    if recent.num_ended < MIN_REQUESTS:
        ended = f"{recent.num_ended} requests ended {last}" if recent.num_ended else "no request has ended yet"
        raise StartError(f"--live is {name}; {ended}; {MIN_REQUESTS} are needed")
    if len(recent.workload) < MIN_REQUESTS:
        raise StartError(f"--live is {name}; {len(recent.workload)} requests came {last}; {MIN_REQUESTS} are needed")
    if recent.workload.rate == 0.0:
        raise StartError(f"--live is {name}; the requests {last} all came at the same moment")


def _least(state: LiveState) -> Callable[[str], int]:
    return lambda field: int(min(getattr(worker, field) for worker in state.workers))


def _serving(state: LiveState, least: Callable[[str], int], profile: FromProfile | None, name: str) -> Serving:
    block_size, block_bytes, blocks = least("block_size"), least("block_bytes"), least("num_blocks")
    kv_bytes_per_token = block_bytes / block_size
    serving = Serving(
        model=ModelShape(state.model, *(7 * (1,)), bytes_per_kv=kv_bytes_per_token / 2),  # of its sizes KV's counts
        max_model_len=min(least("max_model_len"), blocks * block_size),
        block_size=block_size,
        max_num_seqs=least("max_num_seqs"),
        prefix_caching=all(worker.prefix_caching for worker in state.workers),
        kv_bytes=blocks * block_bytes,
        link=_FREE_LINK if state.link_bytes_per_s is None else LinkSpec(state.link_bytes_per_s),
    )
    if profile is None:
        return replace(serving, step_times=Measured(measured_steps(state, name)))
    subject = profile.subject
    if isinstance(profile.steps, Imported):
        raise ConfigError(["--profile is another system's; --live takes one of `pdserve profile`"])
    if subject is not None and subject.kv_bytes_per_token != kv_bytes_per_token:
        raise ConfigError(
            [f"--profile is of {subject.model}, whose KV has {subject.kv_bytes_per_token:,} bytes a token in "
             f"{subject.dtype}; that of {state.model} at {name} has {kv_bytes_per_token:,.0f}"]
        )  # fmt: skip
    return profile.applied(serving)


def measured_steps(state: LiveState, name: str) -> PiecewiseSteps:
    """Prompts' steps as prefill workers measured theirs, decodes' as decode workers did.

    Of both together nobody has measured any where the pools are apart: each part costs its own, and the larger of the
    bases once, since weights are read once. What a prefill worker pays for context goes to the tokens there: of prompts
    of one step both are the same number, of which its fit may have given either the price. Errors: StartError where
    all of a role know nothing.
    """
    prompts, outputs = state.recent.workload.prompt_tokens, state.recent.workload.output_tokens
    chunk = min(worker.max_num_batched_tokens for worker in state.workers)
    context = _SEQUENCES * int(prompts.mean() + outputs.mean() / 2)
    decode = _median(state.of(Role.DECODE), name, (0, _SEQUENCES, context))
    if not state.of(Role.PREFILL):
        return piecewise(decode)
    typical = min(int(prompts.mean()), chunk)
    prefill = _median(state.of(Role.PREFILL), name, (typical, 0, typical))
    mixed = LatencyCoefficients(
        max(prefill.base_s, decode.base_s),
        prefill.per_prefill_token_s + prefill.per_context_token_s * _context_of_a_token(prompts, chunk),
        decode.per_decode_sequence_s,
        decode.per_context_token_s,
    )
    return PiecewiseSteps(Regime.linear(prefill), Regime.linear(decode, only_decodes=True), Regime.linear(mixed))


def _context_of_a_token(prompts: Ints, chunk: int) -> float:
    """Positions that steps of prompts read, for each token that they compute."""
    full, rest = np.divmod(prompts, chunk)
    context = chunk * full * (full + 1) // 2 + np.where(rest > 0, prompts, 0)
    return float(context.sum() / prompts.sum())


def _median(workers: Sequence[LiveWorker], name: str, step: tuple[int, int, int]) -> LatencyCoefficients:
    """Of the worker whose step of this shape is the median: medians of each number would be of no worker's fit."""
    known = [worker.latency for worker in workers if worker.latency is not None]
    if not known:
        role = workers[0].role.value
        raise StartError(
            f"--live is {name}; no {role} worker has measured its steps yet: serve some requests, or give --profile"
        )
    return sorted(known, key=lambda one: LatencyModel(one).step_s(*step))[(len(known) - 1) // 2]
