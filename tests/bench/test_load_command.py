"""`pdserve bench` as a user types it, against a gRPC server that says what a test wants."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from bench.load.grpc_stream import GrpcPool, grpc_request
from bench.load.result import BadAnswer, Outcome
from bench.load.session import Run, run_at
from deploy.cli import main
from pdserve.errors import PeerLost, QueueFull, ServingError
from pdserve.slo import Blame, Verdict
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc as rpc
from router.grpc_front.status import rich_status

FIRST_S, STEP_S = 0.01, 0.002


class FakeService(rpc.InferenceServiceServicer):  # type: ignore[misc]
    """Tokens after known waits; some requests find no room; the queue is to blame where TTFT was asked for."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.reject_each = 0
        self.end_after = 0
        self.refusal: ServingError | None = None
        self.end: Callable[[], Any] = lambda: None

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        workers = [pb.WorkerInfo(id=f"decode-{n}", role="decode", device="cpu", up=True) for n in range(2)]
        return pb.GetServerInfoResponse(model="fake", max_model_len=1024, vocab_size=512, workers=workers)

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:
        self.requests.append(request)
        if len(self.requests) == self.end_after:
            self.end()
        if self.reject_each and len(self.requests) % self.reject_each == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room for 9 tokens")
        if self.refusal is not None:
            context.abort_with_status(rpc_status.to_status(rich_status(self.refusal)))
        for number in range(request.max_tokens):
            time.sleep(STEP_S if number else FIRST_S)
            yield pb.GenerateResponse(chunk=pb.GenerateChunk(token_ids=[number]))
        blame = pb.BLAME_QUEUE if request.slo.ttft_s else pb.BLAME_UNSPECIFIED
        usage = pb.Usage(prompt_tokens=len(request.token_ids.ids), completion_tokens=request.max_tokens)
        yield pb.GenerateResponse(
            complete=pb.GenerateComplete(
                usage=usage, finish_reason=pb.FINISH_REASON_LENGTH, slo=pb.SloOutcome(blame=blame)
            )
        )


@pytest.fixture
def service() -> Iterator[tuple[FakeService, str]]:
    """The fake and its address."""
    fake, server = FakeService(), grpc.server(ThreadPoolExecutor(32))
    rpc.add_InferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    fake.end = lambda: server.stop(0)
    server.start()
    yield fake, f"127.0.0.1:{port}"
    server.stop(0.2).wait()


def test_a_request_that_failed_over_grpc_carries_the_servers_blame(service: tuple[FakeService, str]) -> None:
    fake, address = service
    lost, unjudged = PeerLost("decode-0 was lost"), QueueFull("no room")
    lost.verdict = Verdict(True, False, Blame.WORKER_LOSS)

    async def ask(error: ServingError) -> BadAnswer:
        fake.refusal, pool = error, GrpcPool(address)
        try:
            with pytest.raises(BadAnswer) as caught:
                await pool.ask(grpc_request("fake", [1, 2], 3, None, "", True))
        finally:
            await pool.close()
        return caught.value

    failed, rejected = asyncio.run(ask(lost)), asyncio.run(ask(unjudged))
    assert (failed.outcome, failed.blame) == (Outcome.FAILED, "worker_loss") and "decode-0 was lost" in str(failed)
    assert (rejected.outcome, rejected.blame) == (Outcome.REJECTED, None)


LOAD = ["--input-len", "20", "--output-len", "4", "--rate", "100", "--arrivals", "constant"]


def test_a_run_is_told_written_and_drawn(
    service: tuple[FakeService, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers on the terminal, the same in JSON under stable names, plots in one HTML file."""
    fake, address = service
    fake.reject_each = 3
    files = ["--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html")]
    slo = ["--slo-ttft", "5", "--slo-tpot", "5"]
    assert main(["bench", "--server", address, *LOAD, "--num-requests", "30", "--warmup", "0", *slo, *files]) == 0
    said = capsys.readouterr().out
    assert "blame       10 rejected\n" in said  # the server blamed its queue for 20 that were in time by our clock
    assert "20 ok, 10 rejected" in said and "10 x RESOURCE_EXHAUSTED: no room for 9 tokens" in said
    assert "attainment  66.7% (20 of 30;" in said
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["schema"], found["model"], found["workers"]) == ("pdserve-bench-1", "fake", 2)
    (run,) = found["runs"]
    assert (run["attainment"], run["outcomes"]) == (20 / 30, {"ok": 20, "rejected": 10})
    assert run["ttft_s"]["p50"] >= FIRST_S and run["tpot_s"]["p50"] >= STEP_S
    assert len(run["requests"]) == 30 and {one["output_tokens"] for one in run["requests"]} == {0, 4}
    page = (tmp_path / "r.html").read_text()
    assert "data:image/png;base64," in page and "attainment  66.7%" in page
    request = fake.requests[0]
    assert (len(request.token_ids.ids), request.max_tokens, request.ignore_eos, request.min_tokens) == (20, 4, True, 4)
    assert (request.slo.ttft_s, request.slo.tpot_s) == (5.0, 5.0)


def test_rates_are_swept_and_no_prompt_comes_twice(
    service: tuple[FakeService, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs and the warm-up; a prompt that came before could be cached; a given prompt seed gives the same again."""
    fake, address = service
    args = ["bench", "--server", address, *LOAD[:4], "--rates", "50,100", "--num-requests", "8", "--warmup", "3",
            "--prompt-seed", "5", "--report", str(tmp_path / "r.png")]  # fmt: skip
    assert main(args) == 0
    assert "at 50 requests/s" in (said := capsys.readouterr().out) and "at 100 requests/s" in said
    prompts = [tuple(one.token_ids.ids) for one in fake.requests]
    assert len(set(prompts)) == len(prompts) == 3 + 8 + 8
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert main(args) == 0
    assert {tuple(one.token_ids.ids) for one in fake.requests} == set(prompts)


def test_the_rate_that_was_asked_for_and_the_one_that_was_sent_are_told_where_they_differ(
    service: tuple[FakeService, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight random arrivals are some way from their mean; constant ones are not."""
    _, address = service
    args = ["bench", "--server", address, *LOAD[:4], "--rate", "50", "--num-requests", "8", "--warmup", "0"]
    assert main(args) == 0
    drawn = re.search(r"8 requests in 0 s \(50/s asked for, (\S+)/s drawn\)", said := capsys.readouterr().out)
    sent = re.search(r"at 50 requests/s asked for, (\S+) sent:", said)
    assert drawn and sent and drawn.group(1) == sent.group(1) != "50", said
    assert main([*args, "--arrivals", "constant"]) == 0
    said = capsys.readouterr().out
    assert "8 requests in 0 s (50/s), " in said and "at 50 requests/s:\n" in said


def test_goodput_is_searched(service: tuple[FakeService, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The rate at which 32 threads of a slow server fall behind, with its limits, per GPU and per worker."""
    _, address = service
    args = [*LOAD[:2], "--output-len", "6", "--rate", "400", "--slo-ttft", "0.2", "--min-probe-s", "0.3",
            "--resolution", "0.9", "--min-requests", "60", "--gpus", "2"]  # fmt: skip
    assert main(["bench", "--server", address, "--find-goodput", *args]) == 0
    said = capsys.readouterr().out
    assert "goodput at 90%:" in said and "requests/s per GPU (2)" in said and "per worker (2)" in said
    rate = float(said.split("goodput at 90%:")[1].split()[0])
    assert rate > 0


def test_two_servers_are_compared_in_turn(service: tuple[FakeService, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The same prompts to both, round by round; ratios of medians."""
    fake, address = service
    args = ["bench", "--server", address, "--compare", f"grpc://{address}", *LOAD, "--num-requests", "6"]
    assert main([*args, "--rounds", "2", "--warmup", "0"]) == 0
    said = capsys.readouterr().out
    assert "2 rounds in turn" in said and "TTFT p50, ms" in said
    prompts = [tuple(one.token_ids.ids) for one in fake.requests]
    assert len(prompts) == 24 and all(prompts.count(one) == 2 for one in prompts)


@pytest.mark.parametrize("search", [[], ["--find-goodput", "--slo-ttft", "5"]])
def test_ctrl_c_gives_what_there_is(service: tuple[FakeService, str], tmp_path: Path, search: list[str]) -> None:
    """Exit code 130, the requests so far as text and JSON."""
    fake, address = service
    command = [sys.executable, "-m", "deploy.cli", "bench", "--server", address, *LOAD, "--num-requests", "100000",
               "--warmup", "0", "--min-requests", "100000", "--json", str(tmp_path / "r.json"), *search]  # fmt: skip
    command = [one.replace("100", "5") if one == "100" else one for one in command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        deadline_s = time.monotonic() + 60
        while len(fake.requests) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=30)
    assert child.returncode == 130 and "interrupted" in said
    found = json.loads((tmp_path / "r.json").read_text())
    if search:
        assert found["goodput"]["complete"] is False
    else:
        assert 0 < found["runs"][0]["outcomes"]["ok"] < 10_000


def test_a_server_that_ends_within_a_run_is_told(
    service: tuple[FakeService, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Some requests were served, the rest were refused a connection: 1, and not a matter of latency."""
    fake, address = service
    fake.end_after = 5
    args = ["bench", "--server", address, *LOAD, "--num-requests", "60", "--warmup", "0"]
    assert main(args) == 1
    said = capsys.readouterr().out
    assert f"grpc://{address} takes no connections any more" in said and " ok" in said


def test_a_server_that_ends_within_a_search_leaves_the_probes(
    service: tuple[FakeService, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once, 1, and what was found before is written; the probe that it ended in says nothing of its rate."""
    fake, address = service
    fake.end_after = 25
    args = ["bench", "--server", address, *LOAD, "--warmup", "0", "--min-requests", "20", "--min-probe-s", "0.1",
            "--find-goodput", "--slo-ttft", "1", "--json", str(tmp_path / "r.json")]  # fmt: skip
    assert main(args) == 1
    said = capsys.readouterr().out
    assert "  the server ended\n" in said and "goodput: the server ended; at least 100 requests/s passed\n" in said
    assert said.count("takes no connections any more") == 1
    found = json.loads((tmp_path / "r.json").read_text())
    run = found["runs"][-1]
    assert run["outcomes"]["failed"] > 0 and run["blame"]["failed"] == run["outcomes"]["failed"]
    assert found["goodput"]["complete"] is False and [one["rate"] for one in found["goodput"]["probes"]] == [100.0]


class Refusing(BaseHTTPRequestHandler):
    """Wants a key that nobody has."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: Any) -> None:
        """Not here."""


def test_the_wrong_door_and_a_missing_key_are_named(
    service: tuple[FakeService, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One clean line that says what to give."""
    _, address = service
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        plain = f"127.0.0.1:{http.server_port}"
        for server, words in (
            (f"http://{plain}", "an API key is needed: --api-key or PDSERVE_API_KEY (401)"),
            (plain, f"does not speak gRPC: if it is HTTP, say http://{plain}"),
            (
                f"http://{address}",
                f"does not speak HTTP/1: if it is pdserve's gRPC door, say grpc://{address}, "
                f"if it wants TLS https://{address}",
            ),
        ):
            assert main(["bench", "--server", server, *LOAD, "--num-requests", "1"]) == 1
            error = capsys.readouterr().err
            assert words in error and error.count("\n") == 1 and error.rstrip("\n").isprintable()
        against = ["bench", "--server", address, "--compare", f"http://{plain}", *LOAD, "--num-requests", "1"]
        assert main(against) == 1
        assert capsys.readouterr().err.startswith(f"pdserve bench: error: --compare is http://{plain}")
        http.shutdown()


@pytest.mark.parametrize("cut_at", [1, 2, 4])
def test_an_interrupted_round_counts_nowhere(
    service: tuple[FakeService, str], cut_at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In the first server's run or the second's: ratios are of whole rounds."""
    _, address = service
    runs: list[Run] = []

    def cut(*args: Any) -> Run:
        runs.append(run := run_at(*args))
        return replace(run, summary=replace(run.summary, interrupted=True)) if len(runs) == cut_at else run

    monkeypatch.setattr("bench.load.compare.run_at", cut)
    args = ["bench", "--server", address, "--compare", address, *LOAD, "--num-requests", "2", "--rounds", "4",
            "--warmup", "0", "--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.png")]  # fmt: skip
    assert main(args) == 130
    whole = (cut_at - 1) // 2
    (found,) = json.loads((tmp_path / "r.json").read_text())["comparisons"]
    assert len(found["first"]) == len(found["second"]) == whole and bool(found["ratios"]) == bool(whole)
    said = capsys.readouterr().out
    assert ("that was interrupted does not count" if whole else "interrupted before the first round") in said


WRONG = [
    (["--rate", "1"], 2, "one of --workload, --trace, or --input-len with --output-len is needed"),
    (["--input-len", "5"], 2, "--input-len and --output-len go together"),
    ([*LOAD, "--workload", "azure-conv"], 2, "and only one"),
    ([*LOAD, "--rates", "1,2"], 2, "--rate and --rates"),
    ([*LOAD, "--find-goodput"], 2, "--find-goodput needs --slo-ttft"),
    ([*LOAD, "--report", "x.pdf"], 2, "--report is x.pdf; it must end in .html or .png"),
    ([*LOAD, "--rate", "0"], 2, "'0' must be a number above 0"),
    (["--workload", "input=0,output=1"], 2, "--workload input is '0'"),
    (
        [*LOAD, "--json", "x.html", "--report", "x.html"],
        2,
        "--json is x.html and --report is x.html; they must not be the",
    ),
    ([*LOAD, "--processes", "100000"], 2, "--processes: '100000' must be a whole number, at least 1, at most 256"),
    (["--workload", "nope"], 2, "--workload is 'nope', no file; it must begin with a trace file, one of azure-code"),
    (["--workload", "nope.csv"], 5, "nope.csv: cannot be read: No such file"),
    (["--trace", "no.csv"], 5, "no.csv: cannot be read: No such file"),
    (["--trace", "nope"], 5, "nope: cannot be read: No such file"),
    (["--trace", "nope,rate=2"], 5, "nope: cannot be read: No such file"),
    ([*LOAD, "--json", "/nowhere/x.json"], 6, "--json is /nowhere/x.json"),
    ([*LOAD, "--server", "nonsense"], 2, "--server is 'nonsense'; it must be HOST:PORT"),
    ([*LOAD, "--server", "127.0.0.1:1", "--num-requests", "1"], 1, "it does not answer"),
    ([*LOAD, "--server", "http://127.0.0.1:1", "--num-requests", "1"], 1, "it does not answer"),
]


@pytest.mark.parametrize(("args", "code", "said"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_are_one_line_and_a_code(
    args: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 for arguments, 5 for workloads, 6 for files that cannot be written, 1 for a server that is not there."""
    try:
        found = main(["bench", *args])
    except SystemExit as exit_:  # argparse's own
        found = int(exit_.code or 0)
    errors = capsys.readouterr().err
    assert found == code and said in errors


def test_what_does_not_fit_or_is_not_stated_is_told(
    service: tuple[FakeService, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A request longer than the context, before any is sent; a workload without a number of requests."""
    fake, address = service
    long = ["--input-len", "1024", "--output-len", "4", "--rate", "9", "--num-requests", "3", "--warmup", "0"]
    assert main(["bench", "--server", address, *long]) == 5
    assert "takes 1,024" in capsys.readouterr().err and not fake.requests
    assert main(["bench", "--server", address, *long[:-2]]) == 5  # nor a warm-up request
    assert "takes 1,024" in capsys.readouterr().err and not fake.requests
    few = ["bench", "--server", address, *LOAD[:4], "--num-requests", "3"]
    assert main([*few, "--rate", "1e-300"]) == 5
    assert "a run is 2,592,000 s long at most: give a higher --rate" in capsys.readouterr().err and not fake.requests
    assert main([*few, "--rate", "50", "--skip", "1000", "--warmup", "0"]) == 2
    assert "--skip is 1000 s; the run's last request comes after 0." in capsys.readouterr().err and not fake.requests
    assert main(["bench", "--server", address, *LOAD]) == 5
    assert "needs a number of requests or a duration" in capsys.readouterr().err
