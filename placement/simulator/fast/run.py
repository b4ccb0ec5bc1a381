"""The compiled simulator's face: the same cluster and workload in, the same columns out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pdserve.errors import InvariantViolation
from placement.simulator.cluster import ClusterSpec
from placement.simulator.fast import records
from placement.simulator.fast.ahead import ahead_rows, settle_all
from placement.simulator.fast.board import MOST_BLOCKS, PREFILL_ROLE, board_of
from placement.simulator.fast.directory import Directory, directory_of
from placement.simulator.fast.events import NARROW, grown, queue_of
from placement.simulator.fast.kernel import Space, run_events
from placement.simulator.fast.policy import fast_decode
from placement.simulator.fast.policy_cached import best_decode
from placement.simulator.fast.records import NEVER, Records
from placement.simulator.fast.steady import steady_rows
from placement.simulator.fast.steps import encode
from placement.simulator.fast.store import Cache, cache_of
from placement.simulator.give_up import GiveUp
from placement.simulator.requests import Outcome
from placement.simulator.results import RequestColumns, SimulationResult
from placement.simulator.worker import WorkerCounts
from placement.workload.workload import Workload
from scheduling.routing import Role

_MOST = 1 << 30  # more than any context or queue has


class Unsupported(ValueError):
    """The compiled simulator does not model this; the one of the real code does."""


def unsupported(cluster: ClusterSpec, workload: Workload) -> str:
    """Why `simulate_fast` would refuse; empty if it would not."""
    if cluster.delays.message_s >= cluster.status_s:
        return "messages that take longer than a status period"
    if cluster.slowdown:
        return "workers that slow one another down"
    if cluster.warming:
        return "decodes that warm up"
    if cluster.jitter:
        return "steps that take now more, now less time"
    if len(workload) == 0:
        return "a workload without requests"
    prompt, longest = int(workload.prompt_tokens.max()), int((workload.prompt_tokens + workload.output_tokens).max())
    for worker in cluster.workers:
        if encode(worker.step_times) is None:
            return f"step times of kind {type(worker.step_times).__name__}"
        if prompt + 1 > worker.scheduler.max_model_len:
            return "prompts longer than the context"
        if min(longest, worker.scheduler.max_model_len) > worker.num_blocks * worker.block_size:
            return "requests larger than a worker's KV pool"
        if worker.num_blocks > MOST_BLOCKS:
            return f"KV pools of more than {MOST_BLOCKS:,} blocks"
    return ""


def compiled_parts(cluster: ClusterSpec, workload: Workload) -> tuple[Callable[..., object], ...]:
    """Functions whose machine code a run needs; runs with prefix caches and without are compiled apart."""
    return (run_events, best_decode if _shares(cluster, workload) else fast_decode)


def _shares(cluster: ClusterSpec, workload: Workload) -> bool:
    """Whether a prompt may find what another left."""
    return workload.prefixes is not None and any(worker.prefix_caching for worker in cluster.workers)


def simulate_fast(cluster: ClusterSpec, workload: Workload, give_up: GiveUp | None = None) -> SimulationResult:
    """As `simulate`, compiled. Errors: Unsupported; InvariantViolation if something is left over.

    A run that is given up is not `complete`; what had not ended by then is UNFINISHED.
    """
    if why := unsupported(cluster, workload):
        raise Unsupported(f"the compiled simulator does not model {why}")
    limits = give_up or GiveUp(math.inf, math.inf, 0, len(workload))
    ahead, caches = True, _shares(cluster, workload)
    world, workers, requests, seqs = _simulated(cluster, workload, limits, ahead=ahead, caches=caches)
    while world["unclear"][0] or world["forgot"][0]:
        ahead, caches = ahead and not world["unclear"][0], caches or bool(world["forgot"][0])
        world, workers, requests, seqs = _simulated(cluster, workload, limits, ahead=ahead, caches=caches)
    if world["failed"][0]:
        raise Unsupported("the compiled simulator does not model a worker's queue that is full")
    if world["missed"][0] > limits.misses:
        return _result(cluster, world[0], workers, requests, seqs)
    if (requests["outcome"] == Outcome.UNFINISHED).any() or world["handoffs"][0]:
        raise InvariantViolation("the compiled simulator lost a request")
    if (workers["free"] != workers["num_blocks"]).any():
        raise InvariantViolation("the compiled simulator lost blocks")
    return _result(cluster, world[0], workers, requests, seqs)


def _simulated(
    cluster: ClusterSpec, workload: Workload, limits: GiveUp, *, ahead: bool, caches: bool = False
) -> tuple[Records, Records, Records, Records]:
    """What has become of the world, its workers, the requests and their sequences.

    `ahead` changes no result, where not `unclear`; nor does `caches` where no prompt shares a prefix, nor anything was
    forgotten that a cache had kept (`forgot`).
    """
    world, workers, params = _cluster(cluster)
    cache = cache_of(workload, workers) if caches else None
    directory = directory_of(workload, workers) if caches else None
    requests, seqs, hands = _requests(workload)
    world["ttft_s"], world["tpot_s"], world["first"] = limits.ttft_s, limits.tpot_s, limits.first
    world["misses"], world["ahead"], world["touched"] = limits.misses, ahead, -1
    _run(cluster, world, workers, requests, seqs, hands, params, cache, directory)
    return world, workers, requests, seqs


def _run(
    cluster: ClusterSpec, world: Records, workers: Records, requests: Records, seqs: Records, hands: Records,
    params: Records, cache: Cache | None, directory: Directory | None,
) -> None:  # fmt: skip
    """`run_events` until it ends; what a run needs beside its state, and grows."""
    num, seats = len(workers), 1 + max(spec.scheduler.max_num_seqs for spec in cluster.workers)
    most = 4 * (seats + 16)  # that one event gives, but for the end of many transfers at once
    queue = queue_of(most, num)
    commands, flows, links = (np.empty(len(queue.heap), kind) for kind in (records.command, records.flow, records.link))
    batches, scratch, reserved, ended = (
        np.empty(shape, np.int64) for shape in ((num, seats), 4 * seats + 16, seats, num * num + 1)
    )
    space = Space(batches, scratch, reserved, np.empty(num * num + 1, records.active), ended)
    steady = steady_rows(num, seats, cluster.workers[0].block_size)
    ahead, board = ahead_rows(num), board_of(world[0], workers)
    while True:
        run_events(
            world, workers, requests, seqs, hands, params, queue, commands, flows, links, space, steady, ahead, board,
            cache, directory,
        )  # fmt: skip
        if not world["crowded"][0]:
            break
        world["crowded"] = 0
        queue = grown(queue, world[0])
        commands, flows, links = (np.concatenate((one, np.empty_like(one))) for one in (commands, flows, links))
    settle_all(world[0], workers, cache, requests, seqs, steady, ahead)


def _requests(workload: Workload) -> tuple[Records, Records, Records]:
    num = len(workload)
    requests = np.zeros(num, records.request)
    requests["arrival_s"], requests["prompt"] = workload.arrival_s, workload.prompt_tokens
    requests["output"] = np.minimum(workload.output_tokens, _MOST)
    requests["prefill"] = requests["decode"] = -1
    requests["committed_s"] = requests["first_s"] = NEVER
    seqs = np.zeros(2 * num, records.sequence)
    return requests, seqs, np.zeros(num, records.handoff)


def _cluster(cluster: ClusterSpec) -> tuple[Records, Records, Records]:
    num = len(cluster.workers)
    workers = np.zeros(num, records.worker)
    params: list[Records] = []
    row_of: dict[int, int] = {}  # by the identity of the step times: most workers share theirs
    workers["index"] = np.arange(num)
    for row, spec in zip(workers, cluster.workers, strict=True):
        if id(spec.step_times) not in row_of:
            row_of[id(spec.step_times)] = len(params)
            params.append(encode(spec.step_times))
        config = spec.scheduler
        mixed = config.mixed_prefill_tokens
        values = {
            "role": 0 if spec.role is Role.PREFILL else 1, "num_blocks": spec.num_blocks, "free": spec.num_blocks,
            "size": spec.block_size, "budget": config.max_num_batched_tokens, "seats": config.max_num_seqs,
            "mixed": -1 if mixed is None else mixed, "watermark": config.watermark_blocks(spec.num_blocks),
            "max_len": config.max_model_len, "max_queue": min(config.max_queued_sequences, _MOST),
            "params": row_of[id(spec.step_times)],
            "caches": spec.prefix_caching, "refused": -1,
            "head": -1, "tail": -1, "command_head": -1, "news_head": -1, "links": -1,
        }  # fmt: skip
        for name, value in values.items():
            row[name] = value
        if spec.prior is not None:
            prior = spec.prior
            numbers = (
                prior.base_s, prior.per_prefill_token_s, prior.per_decode_sequence_s, prior.per_context_token_s,
            )  # fmt: skip
            row["prior"], row["coefficients"] = numbers, numbers
            row["has_status"], row["reported_free"], row["known_s"] = 1, spec.num_blocks, -0.05
    local = (
        not any(spec.role is Role.PREFILL for spec in cluster.workers) or cluster.routing.local_prefill_max_tokens > 0
    )
    workers["observes"] = ((workers["role"] == PREFILL_ROLE) | local) & (not cluster.round_robin)
    world = np.zeros(1, records.world)
    delays, routing = cluster.delays, cluster.routing
    settings: dict[str, float] = {
        "status_s": cluster.status_s, "bytes_per_s": cluster.link.bytes_per_s,
        "block_bytes": cluster.block_bytes, "max_in_flight": cluster.max_in_flight, "growth": routing.growth_tokens,
        "local": routing.local_prefill_max_tokens, "round_robin": cluster.round_robin,
    }  # fmt: skip
    for name, setting in settings.items():
        world[name] = setting
    world["soonest_s"], world["mask"] = np.inf, NARROW - 1
    world["free_command"] = world["free_flow"] = world["free_link"] = -1
    world["delays"] = delays.message_s, delays.step_s, delays.wake_s, delays.front_s, cluster.link.latency_s
    return world, workers, np.array(params)


def _result(
    cluster: ClusterSpec, world: Records, workers: Records, requests: Records, seqs: Records
) -> SimulationResult:
    """As `results.collect`."""
    served = requests["outcome"] == Outcome.FINISHED

    def only_served(times: Records) -> Records:
        return np.where(served, times, np.nan)

    ttft_s = requests["first_s"] - requests["arrival_s"]
    left_s = requests["last_s"] - requests["first_s"]
    prefill_s = np.minimum(requests["prefill_s"], ttft_s)
    moved = requests["committed_s"] >= 0.0
    transfer_s = np.where(
        moved, np.minimum(np.maximum(0.0, requests["committed_s"] - requests["first_s"]), left_s), 0.0
    )
    wait_s = np.minimum(requests["wait_s"], left_s - transfer_s)
    computing = np.where(requests["prefill"] >= 0, seqs[0::2], seqs[1::2])
    tpot_s = left_s / np.maximum(requests["tokens"] - 1, 1)
    columns = RequestColumns(
        arrival_s=requests["arrival_s"].copy(), prompt_tokens=requests["prompt"].astype(np.int64),
        output_tokens=requests["tokens"].astype(np.int64), outcome=requests["outcome"].astype(np.int64),
        ttft_s=only_served(ttft_s), tpot_s=only_served(tpot_s),
        e2e_s=only_served(requests["last_s"] - requests["arrival_s"]), queue_s=only_served(ttft_s - prefill_s),
        prefill_s=only_served(prefill_s), transfer_s=only_served(transfer_s), decode_wait_s=only_served(wait_s),
        decode_s=only_served(left_s - transfer_s - wait_s), max_gap_s=only_served(requests["gap_s"]),
        cached_tokens=np.where(requests["tokens"] > 0, computing["cached_tokens"], 0).astype(np.int64),
    )  # fmt: skip
    counts = {
        spec.worker_id: WorkerCounts(
            int(row["steps"]),
            float(row["busy_s"]),
            int(row["prefill_tokens"]),
            int(row["decode_tokens"]),
            int(row["peak"]),
        )
        for spec, row in zip(cluster.workers, workers, strict=True)
    }
    rejected = int((requests["outcome"] == Outcome.REJECTED).sum())
    errors = {"the router is full": rejected} if rejected else {}
    return SimulationResult(
        columns,
        counts,
        float(world["now_s"]),
        float(world["moved_bytes"]),
        int(world["num_events"]),
        errors,
        complete=bool(world["missed"] <= world["misses"]),
    )
