"""The open loop against a server whose every delay is known."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from bench.load.open_loop import LoopPlan
from bench.load.processes import Ran, processes_needed, run_loop
from bench.load.prompts import Prompts
from bench.load.result import Outcome, Result
from bench.load.session import check_fits
from bench.load.show import summary_lines, warnings
from bench.load.summary import Objective, summarize
from bench.load.target import Door, Target, parse_target
from pdserve.exit import StartError
from placement.workload import Prefixes, Workload

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BLAMED = {"error": {"message": "decode-0 was lost"}, "pdserve": {"slo": {"blame": "worker_loss"}}}
MODELS = {"data": [{"id": "fake", "max_model_len": 4096}]}


@dataclass
class FakeServer:
    """Just enough HTTP, every delay as told. Prompts of 13 tokens are refused, of 14 cut, of 15 broken off,
    of 11 refused with blame, of 12 failed with blame."""

    first_s: float = 0.02  # until the first token
    step_s: float = 0.005  # between tokens
    stall: tuple[float, float] = (0.0, 0.0)  # from, to, after the first request: nothing is begun
    one_at_a_time: bool = False
    port: int = 0
    bodies: list[dict[str, object]] = field(default_factory=list)
    began_s: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET"):
            body = json.dumps(MODELS).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n") if b": " in line)
        body = json.loads(await reader.readexactly(int(fields[b"Content-Length"])))
        self.bodies.append(body)
        now_s = time.perf_counter()
        self.began_s = self.began_s or now_s
        if self.stall[0] <= now_s - self.began_s < self.stall[1]:
            await asyncio.sleep(self.began_s + self.stall[1] - now_s)
        async with self._turn:
            await self._stream(body, writer)

    async def _stream(self, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        prompt, asked = body.get("prompt", ""), body["max_tokens"]
        assert isinstance(asked, int)
        if len(prompt) == 13 if isinstance(prompt, list) else False:
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 6\r\n\r\nbusy 9")
            return
        if isinstance(prompt, list) and len(prompt) == 11:
            body_of = json.dumps(BLAMED).encode()
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%b" % (len(body_of), body_of))
            return
        tokens = asked - 1 if isinstance(prompt, list) and len(prompt) == 14 else asked
        writer.write(HEAD)
        if isinstance(prompt, list) and len(prompt) == 12:
            self._event(writer, BLAMED)
            return
        for number in range(tokens):
            await asyncio.sleep(self.first_s if number == 0 else self.step_s)
            said = {"delta": {"content": "x"}} if "messages" in body else {"text": "x"}
            self._event(writer, {"choices": [{"index": 0, **said}]})
            if isinstance(prompt, list) and len(prompt) == 15:
                writer.close()
                return
        self._event(writer, {"choices": [], "usage": {"completion_tokens": tokens}})
        writer.write(b"0\r\n\r\n")

    @staticmethod
    def _event(writer: asyncio.StreamWriter, said: dict[str, object]) -> None:
        event = f"data: {json.dumps(said)}\r\n\r\n".encode()  # line ends as sse-starlette writes them
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))

    async def run(self, ready: threading.Event, stop: asyncio.Event) -> None:
        self._turn = asyncio.Semaphore(1 if self.one_at_a_time else 10_000)
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await stop.wait()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # transports end in a turn of the loop


@contextmanager
def serving(server: FakeServer) -> Iterator[Target]:
    """In a thread and loop of its own: what the generator does does not hold it up."""
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.run(ready, stop),))
    thread.start()
    assert ready.wait(10)
    try:
        yield replace(parse_target(f"http://127.0.0.1:{server.port}"), model="fake")
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def workload_of(arrivals: Sequence[float], prompt: int = 4, output: int = 3) -> Workload:
    num = len(arrivals)
    return Workload.of(np.full(num, prompt), np.full(num, output), np.array(arrivals, np.float64))


def drive(target: Target, workload: Workload, **given: object) -> tuple[list[Result], Ran]:
    """Run it in this process, or in several."""
    settings = {"timeout_s": 20.0, "max_open": None, "num_processes": 1, "stop_after_s": 60.0} | given
    plan = LoopPlan(target, workload, range(len(workload)), 0, None, settings["timeout_s"], settings["max_open"])  # type: ignore[arg-type]
    results: list[Result] = []
    ran = run_loop(plan, settings["num_processes"], results.append, lambda now_s: now_s > settings["stop_after_s"])  # type: ignore[arg-type, operator]
    return sorted(results, key=lambda one: one.index), ran


def test_known_delays_are_what_is_measured() -> None:
    """TTFT is the server's 50 ms, TPOT its 20 ms, and two gaps lie between three tokens; nothing is shorter."""
    with serving(FakeServer(first_s=0.05, step_s=0.02)) as target:
        results, ran = drive(target, workload_of([0.0, 0.05, 0.1, 0.1, 0.1]))
    assert [one.outcome for one in results] == [Outcome.OK] * 5
    assert all(len(one.gaps_s) == 2 and one.num_tokens == 3 for one in results)
    assert min(one.ttft_s or 0 for one in results) >= 0.05
    assert min(one.tpot_s for one in results) >= 0.02 - 0.003
    assert all(one.e2e_s == pytest.approx((one.ttft_s or 0) + 2 * one.tpot_s) for one in results)
    assert not ran.interrupted and len(ran.cores) == 1


def test_a_stalled_server_shows_in_every_latency_that_it_held_up() -> None:
    """A stall of 0.6 s: each request that was due in it waits until its end, although it could not begin before.

    A closed loop of one would have seen one slow request; here all six that were due are slow, each by what was left.
    """
    arrivals = [0.0, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 1.2]
    with serving(FakeServer(first_s=0.001, step_s=0.001, stall=(0.1, 0.7))) as target:
        results, _ = drive(target, workload_of(arrivals))
    for one in results[1:-1]:
        assert (one.ttft_s or 0) >= 0.7 - one.intended_s - 0.02  # the server's clock begins with its first request
    assert all(one.outcome is Outcome.OK for one in results)


def test_waiting_for_a_place_is_latency() -> None:
    """One place, five requests at once of 0.1 s each: the last has waited 0.4 s, and it is told why."""
    with serving(FakeServer(first_s=0.1, step_s=0.0)) as target:
        results, ran = drive(target, workload_of([0.0] * 5, output=1), max_open=1)
    latencies = sorted(one.ttft_s or 0 for one in results)
    assert all(latency >= 0.1 * (number + 1) for number, latency in enumerate(latencies))
    assert sorted(one.capped_s for one in results)[-1] >= 0.4
    summary = summarize(results, workload_of([0.0] * 5), ran, Objective())
    assert summary.capped_p99_s >= 0.4 and any(
        "held requests back" in line for line in summary_lines(summary, Objective())
    )


def test_without_a_cap_nothing_waits_for_anything() -> None:
    """Twenty at once to a server that takes one at a time: all are sent at once, none by the answer of another."""
    server = FakeServer(first_s=0.01, step_s=0.0, one_at_a_time=True)
    with serving(server) as target:
        results, _ = drive(target, workload_of([0.0] * 20, output=1))
    assert max(one.capped_s for one in results) < 0.01
    assert max(one.ttft_s or 0 for one in results) >= 0.2


def test_a_generator_that_is_late_says_so() -> None:
    """Lateness counts in the latency, and the warning names it."""
    late = Result(0, 1.0, 0.5, 0.0, Outcome.OK, 4, 3, 1.9, 1.8, 3, 0.05)
    assert late.ttft_s == pytest.approx(0.8)
    summary = summarize([late], workload_of([1.0]), Ran(2.0, False, 1, (0.6,)), Objective())
    assert summary.generator_is_slow and not summary.machine_was_busy
    assert any("WARNING: the generator was the bottleneck" in line for line in summary_lines(summary, Objective()))
    busy = summarize([replace(late, late_s=0.0)], workload_of([1.0]), Ran(2.0, False, 1, (0.95,)), Objective())
    assert busy.generator_is_slow
    assert not summarize([replace(late, late_s=0.0)], workload_of([1.0]), Ran(2.0, False, 1, (0.1,)), Objective()
                         ).generator_is_slow  # fmt: skip


def test_an_idle_generator_that_is_late_blames_the_machine() -> None:
    """More processes would not help."""
    late = Result(0, 1.0, 0.5, 0.0, Outcome.OK, 4, 3, 1.9, 1.8, 3, 0.05)
    summary = summarize([late], workload_of([1.0]), Ran(2.0, False, 1, (0.02,)), Objective())
    assert summary.machine_was_busy and not summary.generator_is_slow
    (said,) = warnings(summary)
    assert said.startswith("WARNING: this machine was too busy: requests left 500.0 ms late") and "more" not in said


@pytest.mark.parametrize(
    ("judged", "wanted"),
    [
        (True, {"queue": 2, "client side": 1, "rejected": 1, "failed": 1, "worker_loss": 1}),
        (False, {"not told": 2, "short": 1, "rejected": 1, "failed": 1, "worker_loss": 1}),
    ],
)
def test_blame_adds_up_to_the_misses(judged: bool, wanted: dict[str, int]) -> None:
    """The server's word, else the outcome; what only our clock saw is named; a met request has none.

    Of a request that was not served the server's word counts although it does not know our objective.
    """
    slow = Result(0, 0.0, 0.0, 0.0, Outcome.OK, 4, 3, 1.9, 1.8, 3, 0.05, blame="queue")
    results = [
        slow,
        replace(slow, index=1, blame="none"),
        replace(slow, index=2, outcome=Outcome.SHORT),
        Result(3, 0.0, 0.0, 0.0, Outcome.REJECTED, 4, 3, 0.1),
        Result(4, 0.0, 0.0, 0.0, Outcome.FAILED, 4, 3, 0.1),
        replace(slow, index=5, first_s=0.1),
        Result(6, 0.0, 0.0, 0.0, Outcome.FAILED, 4, 3, 0.1, blame="worker_loss"),
    ]
    ran = Ran(2.0, False, 1, (0.1,))
    summary = summarize(results, workload_of([0.0] * 7), ran, Objective(1.0), server_judged=judged)
    assert summary.blame == wanted and sum(summary.blame.values()) == summary.num_requests - summary.met == 6


def test_every_end_is_counted_and_all_but_one_are_misses() -> None:
    """Refused, cut short, broken off, out of time: each under its name with the server's words."""
    prompts = np.array([4, 13, 14, 15, 16])
    outputs = np.array([3, 3, 3, 3, 400])
    workload = Workload.of(prompts, outputs, np.zeros(5))
    with serving(FakeServer()) as target:
        results, ran = drive(target, workload, timeout_s=0.6)
    assert [one.outcome for one in results] == [
        Outcome.OK, Outcome.REJECTED, Outcome.SHORT, Outcome.FAILED, Outcome.TIMEOUT,
    ]  # fmt: skip
    for one, said in zip(
        results[1:], ("429 too many requests busy", "2 tokens came", "ended", "within 0.6"), strict=True
    ):
        assert said in one.error
    summary = summarize(results, workload, ran, Objective(10.0, 10.0))
    assert (summary.met, summary.num_requests, summary.attainment) == (1, 5, 0.2)
    assert summary.outcomes == {"ok": 1, "rejected": 1, "short": 1, "failed": 1, "timeout": 1}
    assert len(summary.errors) == 4


def test_a_failure_carries_the_servers_blame() -> None:
    """Whether it was refused or broke off."""
    workload = Workload.of(np.array([4, 11, 12]), np.array([3, 3, 3]), np.zeros(3))
    with serving(FakeServer()) as target:
        results, _ = drive(target, workload)
    assert [one.outcome for one in results] == [Outcome.OK, Outcome.REJECTED, Outcome.FAILED]
    assert [one.blame for one in results] == [None, "worker_loss", "worker_loss"]
    assert all("decode-0 was lost" in one.error for one in results[1:])


def test_nobody_listening_is_a_failure_of_each_request() -> None:
    """Not of the command."""
    with serving(FakeServer()) as target:
        pass
    results, _ = drive(target, workload_of([0.0, 0.01]))
    assert [one.outcome for one in results] == [Outcome.FAILED] * 2
    assert "ConnectionRefused" in results[0].error


def test_stopped_early_there_is_what_has_ended() -> None:
    """What was in flight is interrupted and no miss; what was not due is not there."""
    with serving(FakeServer(first_s=0.01)) as target:
        workload = Workload.of(np.full(3, 4), np.array([1, 10_000, 1]), np.array([0.0, 0.1, 50.0]))
        results, ran = drive(target, workload, stop_after_s=0.5)
    assert [one.outcome for one in results] == [Outcome.OK, Outcome.INTERRUPTED]
    summary = summarize(results, workload, ran, Objective(5.0, 5.0))
    assert (summary.num_requests, summary.attainment, summary.outcomes) == (1, 1.0, {"ok": 1, "interrupted": 1})


def test_several_processes_send_everything_once() -> None:
    """Two processes begin at one instant and share the requests; each tells what of a core it used."""
    with serving(FakeServer(first_s=0.001, step_s=0.0)) as target:
        results, ran = drive(target, workload_of([n / 100 for n in range(40)], output=2), num_processes=2)
    assert [one.index for one in results] == list(range(40))
    assert all(one.outcome is Outcome.OK for one in results)
    assert (ran.num_processes, len(ran.cores)) == (2, 2)


def test_as_many_processes_as_the_rate_needs() -> None:
    """One for little; more for more tokens than one can read, up to the cores there are."""
    little = workload_of(np.arange(10.0).tolist(), output=10)
    assert processes_needed(little, Door.GRPC) == 1
    much = workload_of((np.arange(2000) / 1000).tolist(), output=1000)
    assert processes_needed(much, Door.GRPC) > 1


def test_lengths_and_prefixes_are_honoured() -> None:
    """The same block id gives the same tokens, other ids others; every prompt has its length; a seed decides."""
    prefixes = Prefixes(np.array([1, 2, 1, 3]), np.array([0, 2, 4, 4]), block_tokens=8)
    workload = replace(Workload.of(np.array([20, 12, 5]), np.array([1, 1, 1]), np.zeros(3)), prefixes=prefixes)
    prompts, again, other = (Prompts(workload, 512, seed, False) for seed in (1, 1, 2))
    first, second, third = (prompts.of(index) for index in range(3))
    assert [len(first), len(second), len(third)] == [20, 12, 5]
    assert first[:8] == second[:8] and first[8:12] != second[8:12]
    assert again.of(0) == first != other.of(0)
    assert all(14 <= int(one) < 512 - 51 for one in first)
    assert len(str(Prompts(workload, 512, 1, True).of(0)).split()) == 20


def test_chat_asks_with_messages_and_lengths_hold() -> None:
    """Text for chat; ignore_eos and min_tokens go with it, and so do the fields that a user adds."""
    server = FakeServer()
    with serving(server) as target:
        chat = replace(target, door=Door.CHAT, extra_body='{"top_k": 1}')
        results, _ = drive(chat, workload_of([0.0]))
    assert results[0].outcome is Outcome.OK and results[0].num_tokens == 3
    (body,) = server.bodies
    assert (body["ignore_eos"], body["min_tokens"], body["top_k"]) == (True, 3, 1)
    assert "prompt" not in body and len(str(body["messages"][0]["content"]).split()) == 4  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "door", "base"),
    [
        ("127.0.0.1:50051", Door.GRPC, "/v1"),
        ("http://h:80/v1/", Door.COMPLETIONS, "/v1"),
        ("https://h/api/v1/chat/completions", Door.CHAT, "/api/v1"),
    ],
)
def test_servers_are_written_in_many_ways(text: str, door: Door, base: str) -> None:
    """gRPC without a scheme, URLs with and without a path."""
    target = parse_target(text)
    assert (target.door, target.base) == (door, base)


@pytest.mark.parametrize("text", ["", "host", "ftp://h:1", "h:99999", "http://"])
def test_a_wrong_server_is_named(text: str) -> None:
    with pytest.raises(StartError, match=r"--server is .*; it must be HOST:PORT or grpc\[s\]://"):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://a..b:80", "no host can be called 'a..b'"),
        (f"{'a' * 64}.com:80", "no host can be called"),
        ("h ost:80", "no host can be called 'h ost'"),
        ("http://h/\u00e9", "its path must be printable ASCII"),
        ("http://[::1", "it must be HOST:PORT"),
        ("http://h\u2100:80", "it must be HOST:PORT"),
    ],
)
def test_what_no_request_can_be_sent_to_is_refused(text: str, words: str) -> None:
    """Sockets and headers would refuse them with errors of their own."""
    with pytest.raises(StartError) as refused:
        parse_target(text)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_name_beyond_ascii_is_sent_as_dns_has_it() -> None:
    assert parse_target("http://b\u00fccher.example:80").host == "xn--bcher-kva.example"


def test_requests_longer_than_the_context_are_refused_before_any_is_sent() -> None:
    target = Target(Door.GRPC, "h", 1, max_model_len=100)
    with pytest.raises(StartError, match=r"longest request has 99 \+ 3 tokens; .* takes 100"):
        check_fits(target, workload_of([0.0], prompt=99))
