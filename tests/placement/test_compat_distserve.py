"""DistServe's rules: the compiled walks against an event-by-event reference, the criterion, and the placements."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from placement.compat.distserve.configurations import (
    Affinity,
    Configuration,
    enumerate_colocated,
    enumerate_configurations,
)
from placement.compat.distserve.criterion import is_below, most_late
from placement.compat.distserve.goodput import Bisection, Goodput, Slo, best_of
from placement.compat.distserve.instance import Backend, Instance, resolve
from placement.compat.distserve.profile import Coefficients, ModelProfile, Parallel
from placement.compat.distserve.search import goodput, search
from placement.compat.distserve.simulate import meets, simulate
from placement.compat.errors import CannotServe, ProfileError
from placement.compat.requests import Requests

NUM_RANDOM = 1500


class Reference:
    """The rules, one event after the other: stages with queues that wake each other, in a heap of (time, order)."""

    def __init__(self, instance: Instance, requests: Requests, rate_scale: float = 1.0) -> None:
        self.instance, self.now, self.events, self.order = instance, 0.0, [], itertools.count()
        self.arrival = [at * 1000.0 / rate_scale for at in requests.arrival_s.tolist()]
        self.prompt, self.output = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
        num = len(self.arrival)
        self.generated, self.group = [0] * num, [0] * num
        self.first_token, self.exits = [-1.0] * num, [-1.0] * num
        self.groups = itertools.count(1)
        decode = [Stage(self, place, instance.decode_stages) for place in range(instance.decode_stages)]
        prefill = decode
        if not instance.colocated:
            prefill = [Stage(self, place, instance.prefill_stages) for place in range(instance.prefill_stages)]
        for ring in (prefill, decode):
            for one, following in zip(ring, ring[1:] + ring[:1], strict=True):
                one.following, one.decode_head = following, decode[0]
        for index, at in enumerate(self.arrival):
            self.at(at, lambda index=index: prefill[0].receive("prompts", index))

    def at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.order), act))

    def run(self) -> Reference:
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            act()
        return self

    def context(self, one: int) -> int:
        return self.prompt[one] + self.generated[one]


class Stage:
    """A worker: one batch at a time, prompts first."""

    following: Stage
    decode_head: Stage

    def __init__(self, world: Reference, place: int, stages: int) -> None:
        self.world, self.place, self.stages = world, place, stages
        self.queues: dict[str, deque[int]] = {"prompts": deque(), "sequences": deque()}
        self.busy = self.woken = False

    def receive(self, queue: str, one: int) -> None:
        self.queues[queue].append(one)
        if not self.busy and not self.woken:
            self.woken = True
            self.world.at(self.world.now, self.start)

    def start(self) -> None:
        self.woken = self.busy = False
        if self.queues["prompts"]:
            batch, finish = self.take_prompts(), self.finish_prompts
            time = self.prefill_time([self.world.prompt[one] for one in batch])
        elif self.queues["sequences"]:
            batch, finish = self.take_sequences(), self.finish_sequences
            time = self.decode_time([self.world.context(one) for one in batch])
        else:
            return
        assert batch
        if self.place == 0:
            time += 2.0 + sum(self.world.context(one) for one in batch) * 0.0001
        self.busy = True
        self.world.at(self.world.now + time, lambda: (finish(batch), self.start())[0])

    def take_prompts(self) -> list[int]:
        world, queue, batch = self.world, self.queues["prompts"], list[int]()
        if self.place:
            group = world.group[queue[0]]
            while queue and world.group[queue[0]] == group:
                batch.append(queue.popleft())
            return batch
        room, group = world.instance.prefill_capacity, next(world.groups)
        while queue and world.prompt[queue[0]] <= room:
            room -= world.prompt[queue[0]]
            world.group[queue[0]] = group
            batch.append(queue.popleft())
        return batch

    def take_sequences(self) -> list[int]:
        queue, batch, room = self.queues["sequences"], list[int](), self.world.instance.decode_cap
        while queue and len(batch) < self.world.instance.decode_capacity:
            need = self.world.context(queue[0]) + 1
            if need > room:
                break
            room -= need
            batch.append(queue.popleft())
        return batch

    def prefill_time(self, lengths: list[int]) -> float:
        a, b, c = self.world.instance.prefill.tolist()
        total = a + b * sum(lengths) + c * sum(one * one for one in lengths)
        return total * (1 / self.stages) + 1 * self.stages

    def decode_time(self, contexts: list[int]) -> float:
        small = len(contexts) < self.world.instance.threshold
        a, b, c = self.world.instance.decode[0 if small else 1].tolist()
        total = a + b * sum(one + 1 for one in contexts) + c * len(contexts)
        return total * (1 / self.stages)

    @property
    def is_last(self) -> bool:
        return self.place == self.stages - 1

    def finish_prompts(self, batch: list[int]) -> None:
        for one in batch:
            if self.is_last:
                self.world.first_token[one] = self.world.now
                self.decode_head.receive("sequences", one)
            else:
                self.following.receive("prompts", one)

    def finish_sequences(self, batch: list[int]) -> None:
        left = []
        for one in batch:
            self.world.generated[one] += self.is_last
            if self.world.generated[one] == self.world.output[one]:
                self.world.exits[one] = self.world.now
            else:
                left.append(one)
        for one in left:
            self.following.receive("sequences", one)


def random_case(draw: random.Random) -> tuple[Instance, Requests]:
    """Small numbers of everything, so that every limit is met now and then; arrivals often at one instant."""
    num = draw.choice((1, 2, 5, 12, 25))
    longest = draw.choice((1, 5, 300))
    grid = draw.choice((0.0, 0.001, 0.05))
    at, rows = 0.0, []
    for _ in range(num):
        at += draw.expovariate(draw.choice((3.0, 40.0)))
        shown = round(at / grid) * grid if grid else at
        rows.append((shown, draw.randint(1, longest), draw.choice((1, 2, draw.randint(1, 40)))))
    if draw.random() < 0.3:  # twins, whose steps end at one instant
        rows = [(at, *rows[0][1:]) for at, _, _ in rows]
    draw.shuffle(rows)
    need = max(prompt + output for _, prompt, output in rows)
    colocated = draw.random() < 0.4
    stages = draw.choice((1, 1, 2, 3, 5))
    instance = Instance(
        colocated,
        np.array([draw.uniform(1, 20), draw.uniform(0, 0.2), draw.uniform(0, 1e-5)]),
        np.array([[draw.uniform(1, 20), draw.uniform(0, 0.01), draw.uniform(0, 0.2)] for _ in range(2)]),
        stages if colocated else draw.choice((1, 1, 2, 4)),
        stages,
        longest + draw.choice((0, 1, longest, 10_000)),
        draw.choice((1, 3, 10_000)) if not colocated else longest + draw.choice((0, 50)),
        draw.choice((1, 2, 7, 95)),
        need + draw.choice((0, 1, need, 50_000)),
    )
    if colocated:  # one capacity bounds both, as in the profile
        capacity = max(instance.prefill_capacity, instance.decode_capacity)
        instance = Instance(**{**fields_of(instance), "prefill_capacity": capacity, "decode_capacity": capacity})
    return instance, Requests.of(rows)


def fields_of(instance: Instance) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in instance.__dataclass_fields__}


def test_the_compiled_walks_equal_the_reference_bit_for_bit() -> None:
    """Thousands of requests in random clusters: every first token and every exit."""
    draw = random.Random(5)
    for _ in range(NUM_RANDOM):
        instance, requests = random_case(draw)
        scale = draw.choice((1.0, 0.3, 7.0))
        expected, found = Reference(instance, requests, scale).run(), simulate(instance, requests, scale)
        arrival = np.array(expected.arrival)
        first, exits = np.array(expected.first_token), np.array(expected.exits)
        assert np.array_equal(found.ttft_s, (first - arrival) / 1000), fields_of(instance)
        assert np.array_equal(found.e2e_s, (exits - arrival) / 1000), fields_of(instance)
        assert np.array_equal(found.tpot_s, (exits - first) / requests.output_tokens / 1000)


def test_giving_up_early_changes_no_verdict() -> None:
    """The criterion on the reference's numbers, by numpy's percentile, for targets at and around it."""
    draw = random.Random(6)
    verdicts = []
    for _ in range(400):
        instance, requests = random_case(draw)
        found = simulate(instance, requests)
        ttft, tpot = np.percentile(found.ttft_s, 90), np.percentile(found.tpot_s, 90)
        slo = Slo(ttft * draw.choice((0.5, 0.999, 1.001, 2)), tpot * draw.choice((0.5, 0.999, 1.001, 2)))
        verdicts.append(meets(instance, requests, 1.0, slo))
        assert verdicts[-1] == bool(ttft < slo.ttft_s and tpot < slo.tpot_s)
    assert 50 < sum(verdicts) < 350


def test_the_criterion_is_the_interpolated_percentile_strictly_below() -> None:
    draw = random.Random(7)
    for num in itertools.chain(range(1, 45), (300, 1001)):
        values = np.array([draw.choice((1.0, 2.0, draw.uniform(0, 3))) for _ in range(num)])
        rank = float(np.quantile(values, 0.9))
        for target in (rank, np.nextafter(rank, 9), 1.0, 2.0, draw.uniform(0, 3), values.max(), values.min()):
            assert is_below(values, target) == (rank < target)
            if np.count_nonzero(values >= target) > most_late(num):
                assert rank >= target


def test_longer_work_never_ends_sooner_alone() -> None:
    """One request on an idle instance: every token more takes time, and all add up."""
    instance, _ = random_case(random.Random(1))
    times = [simulate(instance, Requests.of([(3.0, 1, output)])).e2e_s[0] for output in (1, 2, 3)]
    assert times == sorted(times) and times[0] > 0


@pytest.mark.parametrize(
    ("prompt", "output", "message"),
    [(101, 1, "its prompt has 101 tokens; the prefill instance holds 100"),
     (50, 151, "prompt and output have 201 tokens; a decode batch has at most 200")],
)  # fmt: skip
def test_a_request_that_would_wait_for_ever_is_named(prompt: int, output: int, message: str) -> None:
    model = make_model(capacity={(1, 1): 100, (1, 2): 200}, cap=200)
    requests = Requests.of([(0.0, 10, 10), (1.0, prompt, output)], "file", [3, 8])
    with pytest.raises(CannotServe, match=f"file:8: {message}"):
        simulate(resolve(model, Backend.DISTSERVE, PAIR.prefill, PAIR.decode), requests)


def test_a_placement_that_cannot_hold_a_prompt_has_no_goodput() -> None:
    """The others are searched all the same; what no placement can decode is an error."""
    model = make_model(capacity={(1, 1): 100, (1, 2): 200}, cap=300)
    requests, bisection = Requests.of([(float(at), 150, 10) for at in range(9)]), Bisection(1.0, 0.25)
    wide = Configuration(1, Parallel(1, 2), Parallel(1, 1))
    found = search(model, Backend.DISTSERVE, [PAIR, wide], requests, Slo(9, 9), bisection)
    assert [row.per_gpu for row in found] == [0.0, 0.75]
    with pytest.raises(CannotServe, match="prompt and output have 301 tokens"):
        goodput(model, Backend.DISTSERVE, PAIR, Requests.of([(0.0, 1, 300)]), Slo(9, 9), bisection)


def test_a_resolution_finer_than_numbers_ends() -> None:
    found = goodput(
        make_model(),
        Backend.DISTSERVE,
        PAIR,
        Requests.of([(0.0, 9, 9), (1.0, 9, 9)]),
        Slo(0.05, 9),
        Bisection(1e3, 1e-300),
    )
    assert 0 < found < 1e3


def test_a_profile_without_time_is_refused() -> None:
    zero = Coefficients((0.0, 0.0, 0.0), (-5.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    model = make_model(coefficients=zero)
    with pytest.raises(ProfileError, match="takes no time"):
        goodput(model, Backend.DISTSERVE, PAIR, Requests.of([(0.0, 9, 9)]), Slo(1, 1), Bisection(4, 1))


PAIR = Configuration(1, Parallel(1, 1), Parallel(1, 1))
USUAL = Coefficients((10.0, 0.1, 0.0), (20.0, 1e-3, 0.05), (20.0, 1e-3, 0.1))


def make_model(
    capacity: dict[tuple[int, int], int] | None = None,
    cap: int = 50_000,
    coefficients: Coefficients = USUAL,
    layers: int = 12,
) -> ModelProfile:
    sets = dict.fromkeys((1, 2, 4), coefficients)
    return ModelProfile(
        "m", layers, {"distserve": sets, "vllm": sets}, capacity or {(1, 1): 1600, (1, 2): 4800}, 95, cap
    )


def test_placements_fit_the_gpus_and_divide_the_layers() -> None:
    """Against the rules written as one condition, for both affinities; in the order of their numbers."""
    model = make_model()
    for nodes, per_node, affinity in itertools.product((1, 2, 3), (2, 4, 8), Affinity):
        low = affinity is Affinity.LOW
        expected = [
            (cross, *cut)
            for cross in (range(1, nodes + 1) if low else [1])
            for cut in itertools.product((1, 2, 4), range(1, 25), (1, 2, 4), range(1, 25))
            if 12 % (cross * cut[1]) == 0 and 12 % (cross * cut[3]) == 0
            and cut[0] * cut[1] + cut[2] * cut[3] <= (per_node if low else nodes * per_node)
        ]  # fmt: skip
        found = enumerate_configurations(model, "distserve", nodes, per_node, affinity)
        shown = [(one.pp_cross, one.prefill.tp, one.prefill.pp, one.decode.tp, one.decode.pp) for one in found]
        assert shown == expected
        assert all(one.gpus <= nodes * per_node for one in found)


def test_capacity_beyond_the_table_lies_on_its_line_and_the_table_is_taken_as_it_is() -> None:
    model = make_model(capacity={(1, 2): 1600, (2, 2): 8000, (1, 8): 20_800})
    assert model.capacity(Parallel(2, 2)) == 8000
    assert model.capacity(Parallel(4, 4)) == 46_400
    assert model.capacity(Parallel(1, 1)) is None  # the weights need more than one
    assert Parallel(1, 1) not in {one.prefill for one in enumerate_configurations(model, "vllm", 1, 4, Affinity.LOW)}


def test_the_colocated_baseline_has_one_instance() -> None:
    found = enumerate_colocated(make_model(layers=4), "vllm", 5)
    assert [(one.prefill.tp, one.prefill.pp, one.gpus) for one in found] == [
        (1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 1, 2), (2, 2, 4), (4, 1, 4)
    ]  # fmt: skip


def test_bisection_returns_the_last_rate_that_passed_or_zero() -> None:
    """Goodput is a multiple of the last interval; nothing passes a target below one step."""
    model, requests = make_model(), Requests.of([(float(at), 100, 20) for at in range(40)])
    rows = list(search(model, Backend.DISTSERVE, [PAIR], requests, Slo(0.5, 0.024), Bisection(32.0, 0.5)))
    assert 0 < rows[0].per_gpu < 31 and rows[0].per_gpu % 0.5 == 0
    assert meets_at(model, requests, rows[0].per_gpu) and not meets_at(model, requests, rows[0].per_gpu + 0.5)
    assert goodput(model, Backend.DISTSERVE, PAIR, requests, Slo(0.5, 0.001), Bisection(8.0, 0.5)) == 0.0
    assert goodput(model, Backend.DISTSERVE, PAIR, requests, Slo(0.5, 0.05), Bisection(8.0, 9.0)) == 0.0


def meets_at(model: ModelProfile, requests: Requests, per_gpu: float) -> bool:
    instance = Instance(
        False, np.array(USUAL.prefill), np.array([USUAL.decode_small, USUAL.decode_large]), 1, 1, 1600, 1600, 95, 50_000
    )
    return meets(instance, requests, per_gpu * 2, Slo(0.5, 0.024))


def test_equal_goodput_goes_to_fewer_gpus_and_then_to_the_first() -> None:
    rows = [
        Goodput(Configuration(1, Parallel(tp, 1), Parallel(2, 1)), rate) for tp, rate in ((4, 2.0), (1, 2.0), (1, 1.9))
    ]
    twin = Goodput(Configuration(1, Parallel(2, 1), Parallel(1, 1)), 2.0)
    assert best_of([*rows, twin]) is rows[1]
    assert best_of([]) is None
