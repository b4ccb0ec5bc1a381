"""Splitwise's rules: the compiled walk against an event-by-event reference, and its criterion."""

from __future__ import annotations

import bisect
import heapq
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.compat.errors import CannotServe
from placement.compat.requests import Requests
from placement.compat.splitwise.criterion import meets_all, slowdowns
from placement.compat.splitwise.curves import Curve, Machines, Model, model_of, read_curve
from placement.compat.splitwise.simulate import Timings, simulate

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NUMBERS = itertools.count()


class Reference:
    """Splitwise's rules, one event after the other."""

    def __init__(self, model: Model, curves: list[Curve], num_prompt: int, requests: Requests) -> None:
        self.now, self.events, self.order = 0.0, list[Any](), itertools.count()
        self.kv_bytes = model.kv_bytes
        self.machines = [Machine(self, model, one, index < num_prompt) for index, one in enumerate(curves)]
        self.mixed: list[Machine] = []
        self.prompts, self.tokens = self.machines[:num_prompt], self.machines[num_prompt:]
        columns = (requests.arrival_s.tolist(), requests.prompt_tokens.tolist(), requests.output_tokens.tolist())
        self.orders = [Order(*row) for row in zip(*columns, strict=True)]
        for one in self.orders:
            self.at(one.arrival, lambda one=one: self.schedule(one))

    def at(self, time: float, act: Callable[[], None]) -> list[Any]:
        event = [time, next(self.order), act]
        heapq.heappush(self.events, event)
        return event

    def run(self) -> Reference:
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            act()
            if self.now > 1e5:
                break  # transfers that wait for room that nobody frees
        return self

    def schedule(self, one: Order) -> None:
        """Choose both machines, move machines between pools where none will do, and submit."""
        kv = self.kv_bytes
        in_prompt, in_token = (one.prompt + 1) * kv, (one.output - 1) * kv
        source = target = None
        for pool in (self.prompts, self.mixed):
            best = min(pool, key=lambda machine: machine.pending_tokens, default=None)
            if best and not (best.pending and best.pending_tokens + one.prompt > 8192):
                source = best
                break
        for pool in (self.tokens, self.mixed):
            best = min(pool, key=lambda machine: machine.promised, default=None)
            if best and best.promised + in_prompt + in_token < best.room:
                target = best
                break
        if source is None and self.tokens:
            source = min(self.tokens, key=lambda machine: machine.pending_tokens)
            self.tokens.remove(source)
            self.mixed.append(source)
        if target is None and self.prompts:
            target = min(self.prompts, key=lambda machine: machine.promised)
            self.prompts.remove(target)
            self.mixed.append(target)
        if source is None or target is None:
            source = target = min(
                [*self.prompts, *self.mixed, *self.tokens], key=lambda machine: machine.pending_tokens
            )
        source.promised += in_prompt
        target.promised += in_token + (in_prompt if source is not target else 0)
        source.pending_tokens += one.prompt
        target.pending_tokens += 1
        one.source, one.target = source, target
        source.arrive(Task(one, True, one.prompt, in_prompt))
        one.token_task = Task(one, False, 1, in_token)
        if source is target:
            source.arrive(one.token_task)

    def transfer(self, one: Order) -> None:
        """Over a link of its own, once the target has the room; asked again every second."""
        if one.target.used + one.held > one.target.room:
            self.at(self.now + 1.0, lambda: self.transfer(one))
            return
        one.target.used += one.held
        time = one.prompt * self.kv_bytes / (200 * 1024**3)
        self.at(self.now + time, lambda: self.transferred(one))

    def transferred(self, one: Order) -> None:
        one.source.release(one)
        one.target.arrive(one.token_task)
        source = one.source
        if source.pending and not source.batch:
            if source.used + source.pending[0].bytes <= source.room:
                source.start()
        elif source.pending and len(source.batch) < 512 and source.batch_tokens < 2048:
            source.pause()


class Order:
    def __init__(self, arrival: float, prompt: int, output: int) -> None:
        self.arrival, self.prompt, self.output = arrival, prompt, output
        self.held, self.first_token, self.exit = 0, -1.0, -1.0
        self.source: Machine
        self.target: Machine
        self.token_task: Task


class Task:
    def __init__(self, request: Order, is_prompt: bool, tokens: int, size: int) -> None:
        self.request, self.is_prompt, self.tokens, self.bytes = request, is_prompt, tokens, size
        self.left = 1.0 if is_prompt else float(request.output - 1)
        self.passed_over, self.blocked, self.ran = 0, False, False
        self.number = next(NUMBERS)

    @property
    def rank(self) -> tuple[int, float]:
        return self.passed_over, self.request.arrival


class Machine:
    """Runs a batch for as many iterations as nothing changes; an arrival cuts that short at the next boundary."""

    def __init__(self, cluster: Reference, model: Model, curve: Curve, is_prompt: bool) -> None:
        self.cluster, self.curve, self.is_prompt = cluster, curve, is_prompt
        self.used = self.promised = model.weight_bytes
        self.room, self.pending_tokens, self.batch_tokens = curve.room_bytes, 0, 0
        self.pending: list[Task] = []
        self.blocked: list[Task] = []
        self.batch: list[Task] = []
        self.pool: list[list[Task]] = []  # of each request here its tasks, by arrival
        self.paused, self.iteration, self.contiguous = False, 0.0, 0.0
        self.event: list[Any] = []

    def release(self, one: Order) -> None:
        self.used -= one.held
        self.promised -= one.held

    def arrive(self, task: Task) -> None:
        mine = next((tasks for tasks in self.pool if tasks[0].request is task.request), None)
        if mine is not None:
            mine.append(task)
        else:
            bisect.insort(self.pool, [task], key=lambda tasks: tasks[0].request.arrival)
        bisect.insort(self.pending, task, key=lambda one: one.rank)
        if not self.batch:
            if self.used + task.bytes <= self.room:
                self.start()
        elif len(self.batch) < 512 and self.batch_tokens + task.tokens <= 2048:
            self.pause()
        elif task.is_prompt:
            prompts = self.batch_tokens - sum(not one.is_prompt for one in self.batch)
            if any(not one.is_prompt for one in self.batch) and prompts + task.tokens <= 2048:
                self.pause()

    def select(self) -> list[Task]:
        """The next batch: long passed over, new prompts, preempted, running, and then any other."""
        chosen: list[Task] = []
        memory, tokens = self.used, 0

        def full(task: Task) -> bool:
            return len(chosen) == 512 or bool(chosen and tokens + task.tokens > 2048)

        def take(task: Task) -> bool:
            nonlocal memory, tokens
            if any(one.request is task.request for one in chosen):
                return True
            if not task.ran:
                if memory + task.bytes > self.room:
                    return False
                memory += task.bytes
            chosen.append(task)
            tokens += task.tokens
            return True

        for task in self.pending:
            if task.passed_over < 4 or full(task):
                break
            take(task)
        waiting = sorted((task for task in self.pending if task.is_prompt), key=lambda task: task.number)
        for queue in (waiting, self.blocked, self.batch):
            for task in queue:
                if full(task) or not take(task):
                    break
        for tasks in self.pool:
            if len(chosen) == 512:
                break
            if any(one.request is tasks[0].request for one in chosen):
                continue
            if full(tasks[0]) or not take(tasks[0]):
                break
        self.batch_tokens = tokens
        return chosen

    def start(self) -> None:
        """Form a batch and run it until its first sequence ends (an iteration, if there is a prompt in it)."""
        chosen = self.select()
        for task in [one for one in self.batch if one not in chosen]:
            self.batch.remove(task)
            task.blocked = True
            bisect.insort(self.pending, task, key=lambda one: one.rank)
            self.blocked.append(task)
        for task in [one for one in chosen if one not in self.batch]:
            self.pending.remove(task)
            if task.blocked:
                self.blocked.remove(task)
            self.batch.append(task)
        for tasks in self.pool:
            tasks[0].passed_over += tasks[0] not in self.batch
        if not self.batch:
            if not self.pool and self in self.cluster.mixed:
                self.cluster.mixed.remove(self)
                (self.cluster.prompts if self.is_prompt else self.cluster.tokens).append(self)
            return
        prompts = sum(one.is_prompt for one in self.batch)
        num = sum(one.tokens for one in self.batch)
        if prompts:
            self.iteration = self.time(self.curve.prompt_s, num) * (1.0 if prompts == len(self.batch) else 1.1)
        else:
            self.iteration = self.time(self.curve.token_s, num)
        self.contiguous = 1.0 if prompts else min(one.left for one in self.batch)
        for task in self.batch:
            if not task.ran:
                task.ran = True
                self.used += task.bytes
                task.request.held += task.bytes
            task.blocked = False
        self.event = self.cluster.at(self.cluster.now + self.iteration * self.contiguous, self.complete)

    def time(self, y: tuple[float, ...], tokens: int) -> float:
        x = self.curve.tokens
        high = min(max(bisect.bisect_left(x, tokens), 1), len(x) - 1)
        return (y[high] - y[high - 1]) / (x[high] - x[high - 1]) * (tokens - x[high - 1]) + y[high - 1]

    def pause(self) -> None:
        if self.paused or any(one.is_prompt for one in self.batch):
            return
        self.paused = True
        elapsed = self.cluster.now - (self.event[0] - self.iteration * self.contiguous)
        self.contiguous = elapsed // self.iteration + 1
        self.event[2] = lambda: None
        left = self.iteration * self.contiguous - elapsed
        self.event = self.cluster.at(self.cluster.now + left, self.complete)

    def complete(self) -> None:
        ended = []
        for task in self.batch:
            task.left -= self.contiguous
            if task.left <= 0:
                ended.append(task)
        for task in ended:
            self.batch.remove(task)
            self.end(task)
        self.paused = False
        self.start()

    def end(self, task: Task) -> None:
        one = task.request
        self.pending_tokens -= task.tokens
        mine = next(tasks for tasks in self.pool if task in tasks)
        mine.remove(task)
        if not mine:
            self.pool.remove(mine)
        if not task.is_prompt:
            one.exit = self.cluster.now
            self.release(one)
        else:
            one.first_token = self.cluster.now
            if one.source is not one.target:
                self.cluster.transfer(one)


TINY = Model(1, 1, 1000)  # a token is 4 bytes


def random_case(draw: random.Random) -> tuple[Model, list[Curve], int, Requests]:
    """Few machines with little memory, so that queues, pools and preemption are all used."""
    room = draw.choice((2_000, 12_000, 40_000, 10_000_000))
    curves = []
    for _ in range(2):
        times = sorted(draw.uniform(0.01, 1.0) for _ in range(3))
        curves.append(Sized("g", 1, (64.0, 512.0, 4096.0), tuple(times), tuple(one / 20 + 0.01 for one in times)))
    num_prompt, num_token = draw.randint(1, 3), draw.randint(1, 3)
    machines = [curves[0]] * num_prompt + [draw.choice(curves)] * num_token
    SIZES["room"] = TINY.weight_bytes + room
    longest = min(3000, room // TINY.kv_bytes // 2)
    at, rows = 0.0, []
    for _ in range(draw.choice((1, 8, 40, 90))):
        at += draw.expovariate(draw.choice((0.5, 5.0, 50.0)))
        rows.append((at, draw.randint(1, longest), draw.choice((1, 2, draw.randint(1, min(60, longest))))))
    return TINY, machines, num_prompt, Requests.of(rows)


SIZES = {"room": 0}


class Sized(Curve):
    """A curve of a machine whose memory the case sets."""

    @property
    def room_bytes(self) -> int:
        return SIZES["room"]


def test_the_compiled_walk_equals_the_reference_bit_for_bit() -> None:
    """Random clusters: every first token and every end; or both get stuck on the same requests."""
    draw = random.Random(11)
    compared = moved = stuck = 0
    for _ in range(400):
        model, curves, num_prompt, requests = random_case(draw)
        expected = Reference(model, curves, num_prompt, requests).run()
        groups = [[Machines(one, 1) for one in part] for part in (curves[:num_prompt], curves[num_prompt:])]
        if any(one.exit < 0 for one in expected.orders):
            stuck += 1
            with pytest.raises(CannotServe, match="never end"):
                simulate(model, groups[0], groups[1], requests)
            continue
        found = simulate(model, groups[0], groups[1], requests)
        assert found.ttft_s.tolist() == [one.first_token - one.arrival for one in expected.orders]
        assert found.e2e_s.tolist() == [one.exit - one.arrival for one in expected.orders]
        compared += len(requests)
        moved += any(one.source is one.target for one in expected.orders)
    assert compared > 5_000 and moved > 20 and stuck < 100


def test_what_a_run_took_it_gave_back() -> None:
    """Memory, promises and pending tokens return to where they were; every machine is idle."""
    draw = random.Random(12)
    for _ in range(60):
        model, curves, num_prompt, requests = random_case(draw)
        world = Reference(model, curves, num_prompt, requests).run()
        if all(one.exit >= 0 for one in world.orders):
            for machine in world.machines:
                assert machine.used == machine.promised == model.weight_bytes
                assert machine.pending_tokens == 0 and not machine.batch and not machine.pending


def test_a_request_that_fits_nowhere_is_named() -> None:
    model, curve = model_of("bloom-176b"), Curve("h100-80gb", 8, (128.0, 256.0), (0.05, 0.06), (0.03, 0.04))
    requests = Requests.of([(0.0, 10, 10), (1.0, 90_000, 10)], "f", [1, 2])
    with pytest.raises(CannotServe, match="f:2: has 90,010 tokens; the smallest machine holds 89,"):
        simulate(model, [Machines(curve, 1)], [Machines(curve, 1)], requests)


def test_slowdown_is_measured_against_the_request_alone() -> None:
    curve = Curve("a100-80gb", 8, (100.0, 200.0), (1.0, 2.0), (0.1, 0.2))
    requests = Requests.of([(0.0, 150, 11), (1.0, 100, 1)])
    same = Timings(np.array([1.5, 1.0]), np.array([0.15, 0.1]), np.array([1.5 + 0.15 * 10, 1.0]))
    assert all(values.tolist() == pytest.approx([1, 1, 1]) for values in slowdowns(same, requests, curve).values())
    assert meets_all(slowdowns(same, requests, curve))
    assert not meets_all(slowdowns(replace(same, tbt_s=same.tbt_s * 1.3), requests, curve))


@pytest.mark.skipif(not DATA.exists(), reason=f"reference runs are not at {DATA}")
def test_the_reference_run_agrees_where_the_curves_are_not_rounded() -> None:
    """Every one of 1,216 requests to the last digit that the reference prints.

    The run moves machines between pools, and from its 61st second on a change of its curves by half of their last
    printed digit sends it another way. The medians below are of the same measurements, not rounded: nothing was fitted.
    """
    rows = np.array(json.loads((DATA / "golden-splitwise-small-requests.json").read_text())["rows"])
    curve = read_curve(DATA / "splitwise-perf-medians.json", "bloom-176b", "h100-80gb", 8)
    whole = replace(
        curve,
        prompt_s=tuple(both / 2 / 1.3e3 for both in map(sum, PROMPT_MS)),
        token_s=tuple(both / 2 / 1e3 for both in map(sum, TOKEN_MS)),
    )
    for exact, printed in ((whole.prompt_s, curve.prompt_s), (whole.token_s, curve.token_s)):
        assert [round(value, 6) for value in exact] == [round(value, 6) for value in printed]
    requests = Requests.of([(at, int(prompt), int(output)) for at, prompt, output in rows[:, :3]])
    found = simulate(model_of("bloom-176b"), [Machines(whole, 2)], [Machines(whole, 1)], requests)
    for place, column in ((3, found.ttft_s), (4, found.tbt_s), (5, found.e2e_s)):
        assert np.abs(requests.as_given(column) - rows[:, place]).max() < 2e-9
    rounded = simulate(model_of("bloom-176b"), [Machines(curve, 2)], [Machines(curve, 1)], requests)
    early = rows[:, 0] + rows[:, 5] < 61
    for place, column in ((3, rounded.ttft_s), (4, rounded.tbt_s), (5, rounded.e2e_s)):
        assert np.abs(requests.as_given(column) - rows[:, place])[early].max() < 1e-3
        ratio = np.percentile(column, (50, 90, 99)) / np.percentile(rows[:, place], (50, 90, 99))
        assert np.abs(ratio - 1).max() < 0.04
    assert early.sum() > 400


# BLOOM-176B on eight H100, as measured (perf_model.csv of Mutinifni/splitwise-sim, commit 8f99e7d): the two middle runs
# of each point. Prompts are those of the capped H100, which the file has as 1.3 times the others.
PROMPT_MS = [
    (62.76977072702721,) * 2, (66.53332783607766,) * 2, (98.98434518836439,) * 2,
    (171.85921090422198, 171.90498131676577), (326.4964871748816, 328.60993748181505),
    (839.7376857989002, 849.2178344749846), (1724.4101290008985, 1945.6837815931071), (3278.4820978005882,) * 2,
    (6495.3859282133635,) * 2,
]  # fmt: skip
TOKEN_MS = [
    (35.739242111142055,) * 2, (36.15448040398219,) * 2, (36.16617500690543,) * 2,
    (35.82293909285071, 36.84482189018177), (35.74887487632186, 37.72901139986577),
    (37.14636995092284, 37.91342778809691), (37.52663908947963, 40.50624466136348), (45.84156714267956,) * 2,
    (63.82134215911763,) * 2,
]  # fmt: skip
