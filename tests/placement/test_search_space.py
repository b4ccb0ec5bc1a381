"""Which placements are tried."""

from __future__ import annotations

import itertools

import pytest

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search.candidate import Candidate, Pool
from placement.search.space import Affinity, Space, candidates

H100, A100 = gpu_type("h100"), gpu_type("a100")
MODEL = KNOWN_SHAPES["llama-3.1-8b"]


def space(gpus: int, **changes: object) -> Space:
    return Space(**({"gpus": gpus, "prefill_gpus": (H100,), "decode_gpus": (H100,), "chunks": (512,)} | changes))  # type: ignore[arg-type]


def test_every_placement_within_the_budget_is_there_once() -> None:
    """Against the plain definition, by brute force."""
    sizes = [(tp, pp) for tp in (1, 2) for pp in (1, 2)]
    expected = {
        Candidate(None, Pool(H100, n, tp, pp), 512) for tp, pp in sizes for n in range(1, 6) if n * tp * pp <= 5
    }
    for (tp, pp), (tp_d, pp_d), n, m in itertools.product(sizes, sizes, range(1, 6), range(1, 6)):
        if n * tp * pp + m * tp_d * pp_d <= 5:
            expected.add(Candidate(Pool(H100, n, tp, pp), Pool(H100, m, tp_d, pp_d), 512))
    found = list(candidates(space(5, tps=(1, 2), pps=(1, 2), full=False), MODEL))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_a_full_budget_leaves_out_what_has_room_for_one_more_worker() -> None:
    every = set(candidates(space(6, tps=(1, 4), full=False), MODEL))
    full = list(candidates(space(6, tps=(1, 4)), MODEL))

    def bigger(one: Candidate) -> set[Candidate]:
        return {
            other for other in every if other != one and (other.prefill is None) == (one.prefill is None)
            and all(a.tp == b.tp and a.workers <= b.workers for a, b in zip(one.pools, other.pools, strict=True))
        }  # fmt: skip

    assert set(full) == {one for one in every if not bigger(one)}


@pytest.mark.parametrize(("limit", "most"), [({"max_cost_per_hour": 10.0}, 10.0), ({"max_power_w": 2100.0}, 2100.0)])
def test_budgets_of_money_and_power_hold(limit: dict[str, float], most: float) -> None:
    found = list(candidates(space(8, decode_gpus=(A100, gpu_type("a100+cap")), full=False, **limit), MODEL))
    prices = [one.cost_per_hour if "max_cost_per_hour" in limit else one.power_w for one in found]
    assert 0.8 * most < max(prices) <= most
    assert {pool.gpu.name for one in found for pool in one.pools} == {"h100", "a100", "a100+cap"}


def test_low_affinity_keeps_prefill_and_decode_in_one_node_and_repeats_that() -> None:
    found = [one for one in candidates(space(32, affinity=Affinity.LOW), MODEL) if one.prefill is not None]
    assert all(one.replica_gpus <= 8 and one.gpus <= 32 for one in found)
    assert all(one.gpus + one.replica_gpus > 32 for one in found), "as often as it fits"
    shapes = {(one.prefill.tp, one.prefill.workers, one.decode.tp, one.decode.workers) for one in found if one.prefill}
    assert (4, 1, 4, 1) in shapes and (1, 7, 1, 1) in shapes and (8, 1, 8, 1) not in shapes
    wide = [one for one in candidates(space(32), MODEL) if one.prefill is not None]
    assert any(one.prefill.tp == one.decode.tp == 8 for one in wide if one.prefill)
    assert all(one.replicas == 1 for one in wide)


def test_sizes_divide_heads_and_layers_and_stay_in_a_node() -> None:
    found = list(candidates(space(64, tps=(1, 3, 16), pps=(1, 3), full=False), KNOWN_SHAPES["qwen3-0.6b"]))
    assert {(pool.tp, pool.pp) for one in found for pool in one.pools} == {(1, 1)}


def test_only_split_only_colocated_and_local_prefill() -> None:
    assert all(one.prefill is None for one in candidates(space(4, split=False), MODEL))
    found = list(candidates(space(4, colocated=False, local_prefill=(0, 64)), MODEL))
    assert {one.local_prefill_tokens for one in found} == {0, 64}
    assert all(one.prefill is not None for one in found)


def test_a_space_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement.search.space.MAX_CANDIDATES", 5_000)
    with pytest.raises(ValueError, match="more than 5,000 placements"):
        list(candidates(space(128, full=False, tps=(1,), chunks=tuple(range(1, 101))), MODEL))


def test_thousands_of_gpus_are_tried_in_numbers_a_few_percent_apart() -> None:
    """Of any pool, so that no better number of workers is far from one that is tried."""
    for full in (True, False):
        found = list(candidates(space(4096, full=full, tps=(1, 4), colocated=False), MODEL))
        assert 300 < len(found) < 200_000
        assert all(one.gpus <= 4096 for one in found)
        for sizes in ((1, 1), (1, 4), (4, 1), (4, 4)):
            some = [one for one in found if one.prefill and (one.prefill.tp, one.decode.tp) == sizes]
            tried = sorted({one.prefill.workers for one in some if one.prefill})
            assert tried[0] == 1 and all(b <= max(a + 1, 1.07 * a) for a, b in itertools.pairwise(tried))
            assert max(one.gpus for one in some) > 0.93 * 4096
