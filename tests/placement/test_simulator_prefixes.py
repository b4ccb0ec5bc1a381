"""Prompts that begin alike go where their beginning is, until waiting there costs more than computing it again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.simulator.cluster import ClusterSpec, LinearSteps, LinkSpec, WorkerDown, WorkerSpec, WorkerUp
from placement.simulator.prefixes import ChunkNames
from placement.simulator.requests import SimRequest, prompt_token_ids
from placement.simulator.simulate import simulate
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.prefix_directory import CHUNK_TOKENS, chunk_keys
from scheduling.routing import Role

BLOCK, PREFIX, OWN = 16, 1024, 64
GENERATED = 4321  # stands for all generated tokens
SPEED = LatencyCoefficients(0.004, 2e-5, 5e-5, 0.0)
CONFIG = SchedulerConfig(max_model_len=4096, max_num_seqs=32, max_num_batched_tokens=512)


def cluster(
    num_prefill: int, num_decode: int = 1, *, blocks: int = 4096, caching: bool = True, blind: bool = False
) -> ClusterSpec:
    names = [(f"p{i}", Role.PREFILL) for i in range(num_prefill)] + [(f"d{i}", Role.DECODE) for i in range(num_decode)]
    steps = LinearSteps(LatencyModel(SPEED))
    workers = (
        WorkerSpec(name, role, CONFIG, blocks, BLOCK, steps, prefix_caching=caching, prior=SPEED)
        for name, role in names
    )
    return ClusterSpec(tuple(workers), 1 << 14, LinkSpec(1e10), round_robin=blind)


def sharing(prefixes: Sequence[int], gap_s: float) -> list[SimRequest]:
    """One request every gap_s; each begins with all of the prefix named."""
    return [
        SimRequest(gap_s * n, PREFIX + OWN, 4, tuple(10 * prefix + part for part in range(2)), PREFIX // 2)
        for n, prefix in enumerate(prefixes)
    ]


@pytest.mark.parametrize("num_prefill", [2, 3, 4])
def test_each_prefix_is_computed_once_where_nobody_waits(num_prefill: int) -> None:
    prefixes = np.random.default_rng(3).integers(0, 5, 60)
    requests = sharing([*range(5), *prefixes.tolist()], 0.1)
    rows = simulate(cluster(num_prefill), requests).requests
    assert (rows.cached_tokens[:5] == 0).all() and (rows.cached_tokens[5:] == PREFIX).all()
    blind = simulate(cluster(num_prefill, blind=True), requests).requests
    assert blind.cached_tokens.sum() < 0.95 * rows.cached_tokens.sum()
    assert blind.ttft_s.sum() > rows.ttft_s.sum()


def test_a_hot_prefix_spreads_once_its_queue_costs_more_than_computing_it_again() -> None:
    """Own parts alone are 3 ms and a step; 300 requests in half of the time that one worker would need."""
    requests = sharing([1] * 300, 0.0025)
    result = simulate(cluster(4, 4), requests)
    computed = np.array([result.workers[f"p{i}"].prefill_tokens for i in range(4)])
    assert computed.min() > 0.5 * computed.max()
    assert result.requests.cached_tokens.sum() > 0.9 * 300 * PREFIX
    without = simulate(cluster(4, 4, caching=False), requests).requests
    assert np.percentile(result.requests.ttft_s, 90) < 0.5 * np.percentile(without.ttft_s, 90)


def test_among_decode_workers_alike_the_one_with_the_prefix_saves_the_transfer() -> None:
    requests = sharing([1, 2, 3] * 10, 1.0)
    result = simulate(cluster(1, 3), requests)
    blocks = 3 * (PREFIX + OWN) // BLOCK + 27 * OWN // BLOCK
    assert result.moved_bytes == pytest.approx(blocks * (1 << 14))


def test_a_decode_worker_that_computes_prompts_is_chosen_by_its_prefix_too() -> None:
    rows = simulate(cluster(0, 3), sharing([1, 2, 3, 4] * 10, 0.5)).requests
    assert (rows.cached_tokens[4:] == PREFIX).all()


def test_a_worker_that_died_is_no_longer_thought_to_have_anything() -> None:
    requests = sharing([1] * 9, 1.0)
    result = simulate(cluster(2), requests, [WorkerDown(3.5, "p0"), WorkerUp(3.6, "p0"), WorkerDown(6.5, "p1")])
    lost = int((result.requests.cached_tokens == 0).sum())
    assert lost == 2 and result.workers["p0"].prefill_tokens > 0 < result.workers["p1"].prefill_tokens


def test_caches_too_small_for_all_that_comes_are_expected_to_be() -> None:
    """A worker that evicts what it is sent again is not preferred for it for long."""
    requests = sharing(np.random.default_rng(4).integers(0, 40, 400).tolist(), 0.02)
    small = simulate(cluster(4, 2, blocks=200), requests).requests
    blind = simulate(cluster(4, 2, blocks=200, blind=True), requests).requests
    assert (small.outcome == 1).all()
    assert small.cached_tokens.sum() > 1.5 * blind.cached_tokens.sum()


REQUESTS = st.lists(
    st.tuples(st.integers(1, 900), st.lists(st.integers(0, 2), max_size=9)), min_size=1, max_size=8
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.sampled_from([16, 100, 128, 300, 512]))
def test_names_of_chunks_are_equal_where_their_keys_are(drawn: list[tuple[int, list[int]]], size: int) -> None:
    names, seen = ChunkNames(), dict[int, int]()
    for index, (tokens, ids) in enumerate(drawn):
        request = SimRequest(0.0, tokens, 1, tuple(ids), size)
        token_ids = prompt_token_ids(request, index + 5)  # Python takes -1 for -2
        keys, named = chunk_keys(tuple(token_ids), ""), names.of(request)
        assert len(named) == len(keys) == tokens // CHUNK_TOKENS
        answered = token_ids + [GENERATED] * (answer := 37 * index)
        keys = chunk_keys(tuple(answered), "")
        named = names.with_answer(request, named, tokens + answer)
        for key, name in zip(keys, named, strict=True):
            assert seen.setdefault(key, name) == name
    assert len(set(seen.values())) == len(seen)
