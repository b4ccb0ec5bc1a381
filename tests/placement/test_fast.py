"""The compiled simulator against the one of the real code: equal to the last bit on a thousand random clusters."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from placement.compiled import is_on_disk
from placement.hardware.catalogue import gpu_type
from placement.latency.fitted import PiecewiseSteps, Regime
from placement.latency.roofline import Roofline
from placement.latency.shape import KNOWN_SHAPES
from placement.simulator.cluster import ClusterSpec, Delays, LinearSteps, LinkSpec, StepTimes, WorkerSpec
from placement.simulator.fast import events, run
from placement.simulator.fast.board import PREFILL_ROLE
from placement.simulator.fast.events import Queue
from placement.simulator.fast.records import Records
from placement.simulator.fast.run import Unsupported, simulate_fast, unsupported
from placement.simulator.give_up import GiveUp
from placement.simulator.requests import requests_of
from placement.simulator.simulate import simulate
from placement.workload.sharing import Families
from placement.workload.workload import Prefixes, Workload
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import Role, RoutingConfig

NUM_CASES = 2000
H100 = gpu_type("h100")
COLUMNS = (
    "outcome", "output_tokens", "ttft_s", "tpot_s", "e2e_s", "queue_s", "prefill_s", "transfer_s", "decode_wait_s",
    "decode_s", "max_gap_s", "cached_tokens",
)  # fmt: skip


def random_regime(rng: np.random.Generator) -> Regime:
    knots = int(rng.integers(2, 13))
    rows = np.cumsum(rng.integers(1, 40, knots))
    seconds = 1e-4 + np.cumsum(rng.uniform(0.0, 2e-3, knots))
    pair_s, sequence_s, context_s = (float(one) for one in rng.uniform(0.0, 1.0, 3) * [1e-7, 5e-5, 1e-6])
    scale = float(rng.choice([1.0, 1.1]))
    return Regime(tuple(map(float, rows)), tuple(map(float, seconds)), pair_s, sequence_s, context_s, scale)


def random_steps(rng: np.random.Generator) -> StepTimes:
    kind = rng.random()
    if kind < 0.2:
        prefill, decode, mixed, large = (random_regime(rng) for _ in range(4))
        if rng.random() < 0.5:
            return PiecewiseSteps(prefill, decode, mixed)
        return PiecewiseSteps(prefill, decode, mixed, large, float(rng.integers(2, 6)))
    if kind < 0.35:
        name = str(rng.choice(["llama-3.1-8b", "mixtral-8x7b"]))
        return Roofline(KNOWN_SHAPES[name], gpu_type("h100"), int(rng.choice([1, 2])), 1)
    coefficients = rng.choice([0.0, 1.0], 4, p=[0.2, 0.8]) * rng.uniform(0.2, 2.0, 4) * [4e-3, 2e-5, 5e-5, 1e-7]
    return LinearSteps(LatencyModel(LatencyCoefficients(1e-4 + float(coefficients[0]), *map(float, coefficients[1:]))))


def random_cluster(rng: np.random.Generator) -> ClusterSpec:
    size = int(rng.choice([1, 4, 16]))
    num_blocks = int(rng.choice([28, 40, 100, 1000])) * 16 // size
    seats = int(rng.choice([2, 5, 16]))
    config = SchedulerConfig(
        max_model_len=int(rng.choice([400, 512])), max_num_seqs=seats,
        max_num_batched_tokens=int(rng.choice([16, 37, 128, 600])),
        watermark=float(rng.choice([0.0, 0.01, 0.2])),
        mixed_prefill_tokens=None if rng.random() < 0.7 else int(rng.integers(1, 64)),
    )  # fmt: skip
    roles = [Role.PREFILL] * int(rng.integers(0, 4)) + [Role.DECODE] * int(rng.integers(1, 4))
    same = random_steps(rng) if rng.random() < 0.5 else None
    prior = None if rng.random() < 0.5 else LatencyCoefficients(0.004, 2e-5, 5e-5, 0.0)
    workers = tuple(
        WorkerSpec(
            f"w{i}", role, config, num_blocks, size, same or random_steps(rng), prefix_caching=False, prior=prior
        )
        for i, role in enumerate(roles)
    )
    delays = Delays(*(float(one) for one in rng.choice([0.0, 1e-3, 3.7e-4], 4)))
    link = LinkSpec(float(rng.choice([1e6, 1e7, 1e9])), float(rng.choice([0, 1e-3])))
    return ClusterSpec(
        workers, int(rng.integers(1, 1 << 16)), link,
        delays, RoutingConfig(int(rng.choice([0, 0, 40, 150])), int(rng.choice([0, 64]))), bool(rng.random() < 0.3),
        max_in_flight=int(rng.choice([3, 1024, 1024])), status_s=float(rng.choice([0.5, 1.0])),
    )  # fmt: skip


def shared_prefixes(rng: np.random.Generator, cluster: ClusterSpec) -> tuple[ClusterSpec, Workload]:
    """Few different ids, whole prompts that are equal, ids shorter and longer than blocks; not every worker caches."""
    share = float(rng.choice([1.0, 1.0, 0.5]))
    workers = tuple(replace(one, prefix_caching=bool(rng.random() < share)) for one in cluster.workers)
    plain = random_workload(rng, 40)
    num, most = len(plain), int(rng.choice([20, 120, 350]))
    per_id = int(rng.choice([1, 3, 8, 16, 50, 64]))
    depth, vocabulary = int(rng.integers(0, most // per_id + 2)), int(rng.choice([1, 2, 5]))
    lengths = np.where(rng.random(num) < 0.5, rng.integers(0, depth + 1, num), depth)
    ids = rng.integers(0, vocabulary, int(lengths.sum())) * np.repeat(rng.random(num) < 0.5, lengths)
    prompt = np.where(rng.random(num) < 0.6, rng.choice(rng.integers(1, most + 1, 3), num), rng.integers(1, most + 1))
    prefixes = Prefixes(ids, np.concatenate(([0], np.cumsum(lengths))), per_id)
    return replace(cluster, workers=workers), replace(plain, prompt_tokens=prompt, prefixes=prefixes)


def random_workload(rng: np.random.Generator, most: int = 25) -> Workload:
    num = int(rng.integers(1, most))
    gaps = rng.exponential(float(rng.choice([1e-3, 0.02, 0.3])), num) * (rng.random(num) < rng.choice([0.5, 1.0]))
    prompt = rng.integers(1, int(rng.choice([20, 350])), num)
    output = np.maximum(1, (rng.integers(0, int(rng.choice([2, 20, 98])), num)))
    return Workload.of(prompt, output, np.cumsum(gaps))


def differences(cluster: ClusterSpec, workload: Workload) -> list[str]:
    fast, real = simulate_fast(cluster, workload), simulate(cluster, requests_of(workload))
    found = [
        name
        for name in COLUMNS
        if not np.array_equal(getattr(fast.requests, name), getattr(real.requests, name), equal_nan=True)
    ]
    found += [f"{name}: {fast.workers[name]} != {counts}" for name, counts in real.workers.items()
              if fast.workers[name] != counts]  # fmt: skip
    return found + ([] if fast.moved_bytes == real.moved_bytes else ["moved_bytes"])


def random_case(seed: int) -> tuple[ClusterSpec, Workload]:
    """Every second one with prefixes to share, every fourth with caches in which a sequence finds its own alone."""
    rng = np.random.default_rng(seed)
    cluster = random_cluster(rng)
    if seed % 4 == 0:
        cluster = replace(cluster, workers=tuple(replace(one, prefix_caching=True) for one in cluster.workers))
    return shared_prefixes(rng, cluster) if seed % 2 else (cluster, random_workload(rng))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_equal_to_the_real_code_on_random_clusters() -> None:
    preempted = moved = rejected = again = cached = stayed = 0
    for seed in range(NUM_CASES):
        cluster, workload = random_case(seed)
        assert not unsupported(cluster, workload), seed
        assert not (found := differences(cluster, workload)), (seed, found)
        result = simulate_fast(cluster, workload)
        computed = sum(counts.prefill_tokens for counts in result.workers.values())
        served = result.requests.outcome == 1
        preempted += computed + result.requests.cached_tokens.sum() > workload.prompt_tokens[served].sum()
        moved += result.moved_bytes > 0
        rejected += bool(result.errors)
        again += unclear(cluster, workload)
        cached += result.requests.cached_tokens.sum() > 0
        stayed += num_stayed(cluster, workload) > 0
    assert again < NUM_CASES // 2, "most runs are done again without steps known ahead"
    reached = min(preempted, moved, rejected, again, cached, 4 * stayed)
    assert reached > NUM_CASES // 50, "the cases do not reach what they are for"


def test_a_long_run_with_many_workers_is_equal_too() -> None:
    rng = np.random.default_rng(5)
    cluster = random_cluster(np.random.default_rng(11))
    spec = replace(cluster.workers[0], num_blocks=4096 // cluster.workers[0].block_size * 16)
    workers = tuple(
        replace(spec, worker_id=f"x{i}", role=Role.PREFILL if i < 8 else Role.DECODE, step_times=random_steps(rng))
        for i in range(20)
    )
    workload = Workload.of(rng.integers(1, 400, 600), rng.integers(1, 100, 600), np.cumsum(rng.exponential(4e-3, 600)))
    assert not differences(replace(cluster, workers=workers, max_in_flight=10**6), workload)


def test_a_choice_among_many_workers_is_equal_too() -> None:
    """There a bound may tell who is chosen; rates at which none and all wait, and what all measure differs."""
    for seed, chunk, gap_s in ((0, 128, 2e-3), (1, 600, 1e-4), (2, 37, 2e-3)):
        rng = np.random.default_rng(seed)
        spec = random_cluster(np.random.default_rng(11)).workers[0]
        config = replace(spec.scheduler, max_model_len=512, max_num_seqs=16, max_num_batched_tokens=chunk)
        spec = replace(spec, scheduler=config, num_blocks=1000, prior=LatencyCoefficients(0.004, 2e-5, 5e-5, 0.0))
        workers = tuple(
            replace(spec, worker_id=f"x{i}", role=Role.PREFILL if i < 40 else Role.DECODE, step_times=random_steps(rng))
            for i in range(70)
        )
        cluster = ClusterSpec(workers, 1 << 12, LinkSpec(1e9, 1e-4), Delays(5e-4, 1e-4), max_in_flight=10**6)
        num = 400
        arrival_s = np.cumsum(rng.exponential(float(gap_s), num))
        workload = Workload.of(rng.integers(1, 400, num), rng.integers(1, 40, num), arrival_s)
        limits = GiveUp(math.inf, math.inf, 0, num)
        assert run._simulated(cluster, workload, limits, ahead=True)[0]["bounds"][0][PREFILL_ROLE] == 1
        assert not (found := differences(cluster, workload)), (seed, found)


def unclear(cluster: ClusterSpec, workload: Workload, *, ahead: bool = True) -> bool:
    """Whether something came at the very instant at which a step known ahead ends."""
    limits = GiveUp(math.inf, math.inf, 0, len(workload))
    return bool(run._simulated(cluster, workload, limits, ahead=ahead)[0]["unclear"][0])


def num_stayed(cluster: ClusterSpec, workload: Workload) -> int:
    """Prompts too long to stay on a decode worker, had it not cached the most of them."""
    if workload.prefixes is None or not any(worker.role is Role.PREFILL for worker in cluster.workers):
        return 0
    limits = GiveUp(math.inf, math.inf, 0, len(workload))
    requests = run._simulated(cluster, workload, limits, ahead=False, caches=True)[2]
    is_long = requests["prompt"] > cluster.routing.local_prefill_max_tokens
    return int((is_long & (requests["prefill"] < 0) & (requests["outcome"] == 1)).sum())


def long_outputs(rng: np.random.Generator) -> tuple[ClusterSpec, Workload]:
    """Many steps that only decode, between some that are formed where blocks are short."""
    cluster = random_cluster(rng)
    config = replace(cluster.workers[0].scheduler, max_num_batched_tokens=100, max_num_seqs=int(rng.choice([4, 16])))
    num_blocks = int(rng.choice([60, 100, 1000])) * 16 // cluster.workers[0].block_size
    config = replace(config, max_model_len=900)
    workers = tuple(replace(one, num_blocks=num_blocks, scheduler=config) for one in cluster.workers)
    gaps = rng.exponential(float(rng.choice([1e-3, 0.05, 0.5])), 12)
    workload = Workload.of(rng.integers(1, 200, 12), rng.integers(1, 500, 12), np.cumsum(gaps))
    return replace(cluster, workers=workers), workload


def test_long_outputs_are_equal_too() -> None:
    preempted = 0
    for seed in range(60):
        cluster, workload = long_outputs(np.random.default_rng(seed))
        assert not (found := differences(cluster, workload)), (seed, found)
        workers = simulate_fast(cluster, workload).workers.values()
        preempted += sum(counts.prefill_tokens for counts in workers) > workload.prompt_tokens.sum()
    assert preempted > 5, "the cases do not reach what they are for"


def test_long_outputs_behind_shared_prefixes_are_equal_too() -> None:
    preempted = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cluster, workload = long_outputs(rng)
        ids = Prefixes(rng.integers(0, 2, 12 * 3), np.arange(13) * 3, int(rng.choice([16, 40])))
        prompt = rng.choice(rng.integers(1, 200, 4), 12)
        workers = tuple(replace(one, prefix_caching=True) for one in cluster.workers)
        cluster, workload = replace(cluster, workers=workers), replace(workload, prompt_tokens=prompt, prefixes=ids)
        for caching in (True, False):
            workers = tuple(replace(one, prefix_caching=caching) for one in cluster.workers)
            plain = replace(workload, prefixes=None)
            assert not (found := differences(replace(cluster, workers=workers), plain)), (seed, caching, found)
        assert not (found := differences(cluster, workload)), (seed, found)
        result = simulate_fast(cluster, workload)
        computed = sum(counts.prefill_tokens for counts in result.workers.values())
        preempted += computed + result.requests.cached_tokens.sum() > workload.prompt_tokens.sum()
    assert preempted > 5, "the cases do not reach what they are for"


def test_conversations_of_many_chunks_are_equal_too() -> None:
    hits = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        cluster = random_cluster(rng)
        prompt = rng.integers(100, 3000, 60)
        prefixes = Families(0.8, 0.7, int(rng.choice([100, 512]))).prefixes(prompt, rng)
        workload = Workload.of(prompt, rng.integers(1, 20, 60), np.cumsum(rng.exponential(0.3, 60)), prefixes)
        num_blocks = int(rng.choice([3100, 10_000])) // cluster.workers[0].block_size
        config = replace(cluster.workers[0].scheduler, max_model_len=3100, max_num_batched_tokens=512)
        spec = replace(cluster.workers[0], prefix_caching=True, scheduler=config, num_blocks=num_blocks + 1)
        roles = [Role.PREFILL] * int(rng.choice([0, 3, 3])) + [Role.DECODE] * 3
        workers = tuple(replace(spec, worker_id=f"w{i}", role=role) for i, role in enumerate(roles))
        cluster = replace(cluster, workers=workers, max_in_flight=1024)
        assert not (found := differences(cluster, workload)), (seed, found)
        hits.append(int(simulate_fast(cluster, workload).requests.cached_tokens.sum()))
    assert sum(hit > 5000 for hit in hits) > 6, hits


def test_prompts_that_stay_where_they_are_cached_are_equal_too() -> None:
    stayed = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        cluster = random_cluster(rng)
        prompt = rng.integers(100, 3000, 60)
        prefixes = Families(0.9, 0.9, int(rng.choice([100, 512]))).prefixes(prompt, rng)
        workload = Workload.of(prompt, rng.integers(1, 300, 60), np.cumsum(rng.exponential(0.3, 60)), prefixes)
        config = replace(cluster.workers[0].scheduler, max_model_len=3400, max_num_batched_tokens=512)
        num_blocks = int(rng.choice([10_000, 60_000])) // cluster.workers[0].block_size
        spec = replace(cluster.workers[0], prefix_caching=True, scheduler=config, num_blocks=num_blocks)
        roles = [Role.PREFILL] * int(rng.integers(1, 3)) + [Role.DECODE] * int(rng.integers(1, 4))
        workers = tuple(replace(spec, worker_id=f"w{i}", role=role) for i, role in enumerate(roles))
        routing = RoutingConfig(int(rng.choice([200, 600, 1000])))
        cluster = replace(cluster, workers=workers, max_in_flight=1024, routing=routing, round_robin=False)
        assert not (found := differences(cluster, workload)), (seed, found)
        stayed.append(num_stayed(cluster, workload))
    assert sum(stay > 3 for stay in stayed) > 4, stayed


def test_a_prompt_that_comes_again_and_again_takes_no_more_memory() -> None:
    cluster = random_cluster(np.random.default_rng(11))
    workers = tuple(replace(one, prefix_caching=True) for one in cluster.workers)
    num = 8 * (max(one.num_blocks for one in workers) + 64)
    prefixes = Prefixes(np.zeros(num, np.int64), np.arange(num + 1), 512)
    workload = Workload.of(np.full(num, 300), np.full(num, 2), np.arange(num) * 0.02, prefixes)  # of two chunks
    assert not differences(replace(cluster, workers=workers, round_robin=True), workload)


def test_what_comes_as_a_step_known_ahead_ends_is_found_and_the_run_done_again() -> None:
    spec = random_cluster(np.random.default_rng(11)).workers[0]
    steps = LinearSteps(LatencyModel(LatencyCoefficients(2.0**-8)))  # every sum of them is exact
    workers = tuple(replace(spec, worker_id=f"x{i}", role=Role.DECODE, step_times=steps) for i in range(2))
    cluster = ClusterSpec(workers, 1024, LinkSpec(1e9), Delays())
    apart = Workload.of(np.array([8, 8, 8]), np.array([60, 60, 60]), np.array([0.0, 0.5, 1.0001]))
    together = replace(apart, arrival_s=np.array([0.0, 0.0, 9 * 2.0**-8]))
    assert unclear(cluster, together) and not unclear(cluster, together, ahead=False)
    assert not unclear(cluster, apart)
    assert not differences(cluster, together) and not differences(cluster, apart)


def test_steps_known_ahead_change_nothing_where_many_workers_decode() -> None:
    spec = random_cluster(np.random.default_rng(11)).workers[0]
    config = replace(spec.scheduler, max_model_len=4000, max_num_seqs=64, max_num_batched_tokens=600)
    spec = replace(spec, scheduler=config, num_blocks=20_000, step_times=Roofline(KNOWN_SHAPES["llama-3.1-8b"], H100))
    workers = tuple(replace(spec, worker_id=f"x{i}", role=Role.PREFILL if i < 30 else Role.DECODE) for i in range(60))
    rng = np.random.default_rng(3)
    workload = Workload.of(
        rng.integers(1, 2000, 3000), rng.integers(1, 900, 3000), np.cumsum(rng.exponential(4e-3, 3000))
    )
    for step_s in (0.0, 2e-4):
        cluster = ClusterSpec(
            workers, 1 << 16, LinkSpec(1e9, 1e-4), Delays(1e-3, 5e-4, step_s, 1e-4), max_in_flight=3000
        )
        limits = GiveUp(math.inf, math.inf, 0, len(workload))
        ahead, plain = (run._simulated(cluster, workload, limits, ahead=one) for one in (True, False))
        assert not ahead[0]["unclear"][0]
        assert ahead[0]["num_events"] == plain[0]["num_events"] and ahead[0]["now_s"] == plain[0]["now_s"]
        assert np.array_equal(ahead[2], plain[2])
        assert all(np.array_equal(ahead[1][one], plain[1][one]) for one in ("steps", "busy_s", "decode_tokens", "peak"))


def test_arrays_that_fill_up_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    grown: list[int] = []

    def counted(queue: Queue, world: Records) -> Queue:
        grown.append(len(queue.heap))
        return events.grown(queue, world)

    monkeypatch.setattr(run, "queue_of", lambda _, num_workers: events.queue_of(12, num_workers))
    monkeypatch.setattr(run, "grown", counted)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cluster = random_cluster(rng)
        workload = Workload.of(rng.integers(1, 300, 150), rng.integers(1, 40, 150), np.full(150, 0.01))
        assert not (found := differences(replace(cluster, max_in_flight=1024), workload)), (seed, found)
    assert len(grown) > 20 and len(set(grown)) > 1


def test_the_machine_code_that_a_run_needs_is_on_disk_after_it() -> None:
    """Runs that share prefixes need other code than those that do not."""
    plain = random_case(2)
    shared = next(case for case in map(random_case, range(1, 20, 2)) if case[0].workers[0].prefix_caching)
    assert run.compiled_parts(*plain) != run.compiled_parts(*shared)
    for case in (plain, shared):
        simulate_fast(*case)
        assert all(is_on_disk(part) for part in run.compiled_parts(*case))


def test_what_it_does_not_model_is_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    cluster, workload = random_cluster(rng), Workload.of(np.array([20]), np.array([5]), np.array([0.0]))
    with pytest.raises(Unsupported, match="prompts longer than the context"):
        simulate_fast(cluster, Workload.of(np.array([600]), np.array([5]), np.array([0.0])))
    huge = replace(cluster, workers=tuple(replace(one, num_blocks=1 << 28) for one in cluster.workers))
    with pytest.raises(Unsupported, match="KV pools of more than 268,435,455 blocks"):
        simulate_fast(huge, workload)
    tiny = tuple(replace(one, scheduler=replace(one.scheduler, max_queued_sequences=1)) for one in cluster.workers)
    many = Workload.of(np.full(30, 300), np.full(30, 5), np.zeros(30))
    with pytest.raises(Unsupported, match="queue that is full"):
        simulate_fast(replace(cluster, workers=tiny, max_in_flight=100), many)
