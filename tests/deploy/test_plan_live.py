"""`pdserve plan --live`: from what a router says to a question, the answer, and every way to get none."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from deploy.plan_settings import plan_problems, plan_settings
from deploy.planning.live_fetch import router_of
from deploy.planning.live_state import live_state
from deploy.planning.live_subject import Live, differing, live_of, measured_steps
from pdserve.config import ServeConfig, WorkerConfig
from pdserve.exit import StartError
from pdserve.planning_format import FORMAT, KEY, PATH
from pdserve.slo import Slo, Timing
from placement.latency.fitted_points import StepPoint
from placement.latency.fitted_profile import Subject, make_profile, profile_to_json
from placement.search.answer import Answer
from placement.search.bounds import Bounds
from placement.search.bracket import Attainment, Verdict
from placement.search.goodput import Goodput
from placement.search.parallel import Closer
from placement.search.question import Question
from router.dashboard.planning import RecentRequests
from router.record import Outcome, Predicted, RequestRecord

PREFILL = {"base_s": 0.01, "per_prefill_token_s": 1e-4, "per_decode_sequence_s": 0.0, "per_context_token_s": 1e-8}
DECODE = {"base_s": 0.02, "per_prefill_token_s": 0.0, "per_decode_sequence_s": 3e-4, "per_context_token_s": 2e-8}


def worker(role: str, number: int = 0, **changes: object) -> dict[str, Any]:
    return {
        "id": f"{role}-{number}", "role": role, "device": "cpu", "up": True, "num_blocks": 4000, "block_size": 16,
        "block_bytes": 4096, "max_num_seqs": 64, "max_num_batched_tokens": 512, "max_model_len": 4096,
        "prefix_caching": True, "latency": PREFILL if role == "prefill" else DECODE, "mean_sequences": 4.0, **changes,
    }  # fmt: skip


BUSY = 600  # requests: nearly what one prefill worker carries


def facts(prefill: int = 1, decode: int = 3, num: int = 400, **changes: Any) -> dict[str, Any]:
    """A router whose prompts are long and outputs short."""
    dice = random.Random(0)
    arrivals = sorted(round(dice.uniform(0.0, 100.0), 3) for _ in range(num))
    return {
        KEY: FORMAT, "model": "tiny", "slo": {"ttft_s": 1.0, "tpot_s": 0.04}, "local_prefill_max_tokens": 0,
        "link_bytes_per_s": 1e8,
        "workers": [*(worker("prefill", n) for n in range(prefill)), *(worker("decode", n) for n in range(decode))],
        "requests": {
            "since_unix_s": 1.7e9, "window_s": 100.0, "num_unknown": 0, "more_unknown": False, "num_running": 0,
            "oldest_running_s": 0.0, "arrival_s": arrivals,
            "prompt_tokens": [dice.randrange(800, 1600) for _ in range(num)],
            "completion_tokens": [dice.randrange(2, 10) for _ in range(num)], "cached_tokens": [0] * num,
        },
    } | changes  # fmt: skip


class Said:
    """What the next answer is."""

    status = 200
    body = b""
    api_key: str | None = None  # that the last one was asked with
    path = ""


@pytest.fixture
def router() -> Iterator[tuple[str, Said]]:
    """A server that says anything."""
    said = Said()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said.path, said.api_key = self.path, self.headers["authorization"]
            self.send_response(said.status)
            self.send_header("content-length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, *_: object) -> None:
            """Not on the test's standard error."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}", said
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def plan(router: tuple[str, Said], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `pdserve plan --live` against what a router is to say; its exit code and all that it printed."""

    def run(given: object, *flags: str, status: int = 200, url: str = "{}") -> tuple[int, str]:
        address, said = router
        said.status, said.body = status, given if isinstance(given, bytes) else json.dumps(given).encode()
        code = main(["plan", "--live", url.format(address), *flags])
        return code, "".join(capsys.readouterr())

    return run


def test_the_recent_requests_are_the_workload():
    given = facts()
    live = live_of(live_state(given), "r", None, None, None)
    recorded = live.source.recorded
    assert recorded is not None and recorded.prefixes is None
    assert recorded.prompt_tokens.tolist() == given["requests"]["prompt_tokens"]
    assert recorded.output_tokens.tolist() == given["requests"]["completion_tokens"]
    assert recorded.arrival_s[0] == 0.0 and recorded.rate == pytest.approx(4.0, rel=0.05)
    drawn = live.source.build(rate=8.0, num_requests=3000, seed=1)
    assert drawn.rate == pytest.approx(8.0, rel=0.2) and set(drawn.prompt_tokens) <= set(recorded.prompt_tokens)


def served_at(rate: float, until_s: float) -> dict[str, Any]:
    """What a router says of requests of which one in ten takes 60 s for 1,000 tokens, the others 1 s for 10."""
    slo, times = Slo(), Timing(0.0, 0.1, 0.0, 0.0, 0.0, 0.1, 0.01, "", "", 1)
    ends = []
    for number in range(int(rate * until_s)):
        lasts_s, tokens = (60.0, 1000) if number % 10 == 0 else (1.0, 10)
        record = RequestRecord(
            "r", "", 0, slo, 600.0, None, Outcome.FINISHED, None, None, None, 100, tokens, 0, 1.7e9, 0.0, 0.0, 0.1,
            None, None, None, lasts_s, times, Predicted(), None, None, None, None,
        )  # fmt: skip
        ends.append((number / rate + lasts_s, record))
    recent = RecentRequests(0.0)
    for ended_s, record in sorted((one for one in ends if one[0] <= until_s), key=lambda one: one[0]):
        recent.add(record, ended_s)
    running = [ended_s - record.ended_s for ended_s, record in ends if ended_s > until_s]
    return recent.columns(until_s, 1.7e9, running)


def test_long_requests_count_as_much_as_there_are():
    """The router remembers 50 s of them: short ones that came beside the oldest are forgotten, long ones still run."""
    requests = served_at(100.0, 200.0)
    assert requests["window_s"] == pytest.approx(50.0, abs=0.5) and 680 < requests["num_running"] < 700
    recent = live_state(facts(requests=requests)).recent
    assert recent.workload.rate == pytest.approx(100.0, rel=0.01)
    assert recent.workload.output_tokens.mean() == pytest.approx(0.1 * 1000 + 0.9 * 10, rel=0.02)


def test_a_window_that_is_short_beside_the_requests_is_told(plan):
    requests = served_at(100.0, 200.0)
    said = plan(facts(requests=requests))[1]
    assert "requests still running, the oldest for 60 s: of 50 s that is much" in said
    few = facts()["requests"] | {"num_running": 12, "oldest_running_s": 11.0}  # of 400, but for long
    assert "12 requests still running, the oldest for 11 s: of 100 s" in plan(facts(requests=few))[1]
    assert "still running" not in plan(facts())[1]


def test_lengths_are_spread_over_all_that_came():
    """More or fewer of them than arrivals, in order."""
    given = facts()
    given["requests"]["arrival_s"] = [float(number) for number in range(800)]
    recorded = live_state(given).recent.workload
    prompts = given["requests"]["prompt_tokens"]
    assert recorded.prompt_tokens.tolist() == [one for one in prompts for _ in range(2)]
    given["requests"]["arrival_s"] = [float(number) for number in range(200)]
    assert live_state(given).recent.workload.prompt_tokens.tolist() == prompts[::2]


@pytest.mark.parametrize("gap_s", [0.25, 1.0])
def test_bursts_with_pauses_between_are_the_traffic_of_the_bursts(gap_s: float):
    """Eight, all alike: seven pauses weigh as much as all the other gaps together."""
    given = facts(num=104)
    bursts = [60.0 * burst + gap_s * number for burst in range(8) for number in range(13)]
    given["requests"]["arrival_s"] = bursts
    recent = live_state(given).recent
    assert recent.workload.rate == pytest.approx(1.0 / gap_s, rel=0.01)
    assert recent.paused_s == pytest.approx(bursts[-1] - 103 * gap_s, rel=0.01)


@pytest.mark.parametrize("at_once", [4, 50])
def test_requests_that_come_some_at_once_have_no_pauses(at_once: int):
    """Between them is nothing else, so it is how they come."""
    given = facts(num=400)
    given["requests"]["arrival_s"] = [15.0 * (number // at_once) for number in range(400)]
    recent = live_state(given).recent
    assert recent.paused_s == 0.0 and recent.workload.rate == pytest.approx(at_once / 15.0, rel=0.2)


def test_a_pause_is_no_traffic():
    """Between two loads nothing comes: what matters is how many come while they come."""
    given = facts()
    arrivals = given["requests"]["arrival_s"]
    given["requests"]["arrival_s"] = [one if one < 50.0 else one + 300.0 for one in arrivals]
    recent = live_state(given).recent
    assert recent.paused_s == pytest.approx(300.0, abs=2.0)
    assert recent.workload.rate == pytest.approx(4.0, rel=0.05)


def test_workers_are_taken_as_they_run():
    given = facts()
    given["workers"][0] |= {"max_num_seqs": 32, "device": "cuda:0"}
    given["workers"].append({"id": "decode-9", "role": "decode", "device": "cpu", "up": False})
    state = live_state(given)
    live = live_of(state, "r", None, None, None)
    assert state.num_down == 1 and live.space.gpus == 4
    assert live.present.prefill is not None and (live.present.prefill.workers, live.present.decode.workers) == (1, 3)
    serving = live.serving
    assert (serving.block_bytes, serving.kv_bytes, serving.max_num_seqs) == (4096, 4000 * 4096, 32)
    assert serving.link is not None and serving.link.bytes_per_s == 1e8
    assert serving.blocks(live.present.decode) == 4000
    first, second = differing(state)
    assert "max_num_seqs, 32 to 64" in first and "cpu and cuda" in second


def test_step_times_are_what_each_role_measured():
    """Of both kinds of work together, which nobody measured: each its own, the larger base once."""
    given = facts()
    given["requests"]["prompt_tokens"] = [1536] * 400  # contexts of 512, 1,024 and 1,536: 2 for each token
    steps = measured_steps(live_state(given), "r")
    assert steps.batch_s(500, 0.0, 0, 500) == pytest.approx(0.01 + 500e-4 + 500e-8)
    assert steps.batch_s(0, 0.0, 8, 4000) == pytest.approx(0.02 + 8 * 3e-4 + 4000 * 2e-8)
    mixed_s = 0.02 + 500 * (1e-4 + 2 * 1e-8) + 8 * 3e-4 + 4500 * 2e-8
    assert steps.batch_s(500, 0.0, 8, 4500) == pytest.approx(mixed_s, rel=1e-12)


def test_colocated_workers_measured_both():
    both = DECODE | {"per_prefill_token_s": 1e-4}
    given = facts(workers=[worker("decode", latency=both), worker("decode", 1, latency=None)])
    steps = measured_steps(live_state(given), "r")
    assert steps.batch_s(500, 0.0, 8, 0) == pytest.approx(0.02 + 500e-4 + 8 * 3e-4)


def test_of_several_workers_the_median_counts():
    slow, fast = ({**PREFILL, "base_s": base_s} for base_s in (9.0, 0.001))
    workers = [worker("prefill", n, latency=one) for n, one in enumerate((slow, PREFILL, fast, None))]
    steps = measured_steps(live_state(facts(workers=[*workers, worker("decode")])), "r")
    assert steps.batch_s(100, 0.0, 0, 0) == pytest.approx(0.02)


def test_a_wrong_split_is_told_and_the_plan_starts_the_better_one(plan, tmp_path: Path):
    """One prefill worker of four, and long prompts: more of them serve more, and serve takes the plan."""
    code, said = plan(facts(num=BUSY), "-o", str(tmp_path / "P.json"))
    assert code == 0, said
    lines = said.splitlines()
    assert lines[0].startswith("600 requests of the last 100 s: 5.99 ")
    assert any(line.startswith("now: prefill 1xworker + decode 3xworker, chunk 512: at most ") for line in lines)
    assert any(line.startswith("worth a change: prefill 3xworker + decode 1xworker, chunk 512, +") for line in lines)
    settings = plan_settings(tmp_path / "P.json", (tmp_path / "P.json").read_text())
    assert settings is not None and (settings["prefill"], settings["decode"]) == (3, 1)
    assert plan_problems(tmp_path / "P.json", ServeConfig(worker=WorkerConfig(device="cpu"))) == []
    assert settings["kv_bytes"] == 4000 * 4096 and settings["max_num_batched_tokens"] == 512


def test_a_change_that_nobody_needs_is_not_urged(plan):
    """A better split is told, and that far less comes than is carried; so are the limits of what was measured."""
    code, said = plan(facts(num=150))
    assert code == 0 and "worth a change" not in said, said
    assert "no need to change: what comes is " in said and "prefill 3xworker + decode 1xworker, chunk 512, +" in said
    assert "times what came: steps of such a load were not seen" in said
    assert "workers compute on CPUs: where they share a machine's cores" in said


def test_the_best_split_is_left_as_it_is(plan):
    code, said = plan(facts(prefill=3, decode=1))
    assert code == 0 and said.splitlines()[-2] == "no change: what is there is the best"


def test_more_workers_may_be_asked_for(plan):
    code, said = plan(facts(), "--gpus", "6", "--only", "split")
    assert code == 0 and "best: prefill 5xworker + decode 1xworker" in said and "colocated" not in said


def test_a_profile_stands_in_for_what_nobody_measured(plan, tmp_path: Path):
    """Of the same KV: another model's is refused."""
    fitted = tmp_path / "fitted.json"
    fitted.write_text(json.dumps(DECODE | {"per_prefill_token_s": 1e-4}))
    given = facts(workers=[worker("prefill", latency=None), worker("decode", latency=None)])
    code, said = plan(given, "--profile", str(fitted))
    assert code == 0 and f"step times: {fitted}" in said and "no delays" in said
    subject = Subject("other", 131072, 0, "bfloat16", "cpu", 1, "", "here")
    points = [StepPoint(n, n * n / 2, 0, n, 2e-3 + 4e-5 * n, 0.0, 3) for n in (16, 64, 256, 512)]
    points += [StepPoint(0, 0.0, n, 100 * n, 2e-3 + 1e-4 * n, 0.0, 3) for n in (1, 8, 32, 64)]
    fitted.write_text(json.dumps(profile_to_json(make_profile(subject, points))))
    code, said = plan(given, "--profile", str(fitted))
    assert code == 2 and "--profile is of other, whose KV has 131,072 bytes a token" in said


def test_what_cannot_be_known_is_said(plan):
    given = facts(link_bytes_per_s=None)
    given["requests"] |= {"num_unknown": 7, "more_unknown": False, "cached_tokens": [400] * 400}
    given["workers"][-1]["up"] = False
    for one in given["workers"]:
        one["mean_sequences"] = 1.0
    said = plan(given)[1]
    for words in ("7 more were refused or failed", "of the prompts' tokens were found in caches", "1 worker down",
                  "transfers are taken to take no time", "took 1 sequences a step"):  # fmt: skip
        assert words in said, words


def test_traffic_that_comes_unevenly_is_said(plan):
    """Three quarters of it in one minute of three."""
    given = facts()
    busy = [number * 60.0 / 300 for number in range(300)]
    given["requests"]["arrival_s"] = [*busy, *(60.0 + number * 120.0 / 100 for number in range(100))]
    assert "they came unevenly, up to 5 a second over a minute" in plan(given)[1]
    assert "unevenly" not in plan(facts())[1]


def test_what_is_there_is_the_best_where_a_second_look_says_so(plan, monkeypatch, tmp_path: Path):
    """The search gives up what cannot win: then the plan has it, and nothing is worth a change."""
    monkeypatch.setattr("deploy.planning.live._present", lucky)
    code, said = plan(facts(), "-o", str(tmp_path / "P.json"))
    assert code == 0 and "no change: what is there is the best" in said and "worth a change" not in said, said
    assert "best: prefill 1xworker + decode 3xworker, chunk 512: 999 requests/s" in said
    written = json.loads((tmp_path / "P.json").read_text())
    assert (written["serve"]["prefill"], written["serve"]["decode"]) == (1, 3)
    code, said = plan(facts(), "--only", "colocated", "--slo-tpot", "0.2", "-o", str(tmp_path / "P.json"))
    assert code == 0 and "\nnot worth a change: colocated 4xworker" in said and "confidence of both" not in said
    assert json.loads((tmp_path / "P.json").read_text())["serve"]["prefill"] == 0
    code, said = plan(facts(), "--slo-ttft", "0.0001")
    assert code == 0 and "no change: what is there is the best" in said


def lucky(live: Live, question: Question, found: Closer) -> Answer:
    """More than any other serves."""
    probe = Attainment(999.0, 1.0, 0.0, 1000, Verdict.GOOD)
    return Answer(live.present, Bounds({"luck": 2000.0}), Goodput(999.0, 998.0, 1000.0, (probe,)), "luck")


def test_a_link_of_the_profile_takes_time(plan, tmp_path: Path):
    """Though no worker has measured any."""
    fitted = tmp_path / "fitted.json"
    both = DECODE | {"per_prefill_token_s": 1e-4}
    fitted.write_text(json.dumps(both))
    free = "transfers are taken to take no time"
    assert free in plan(facts(link_bytes_per_s=None), "--profile", str(fitted))[1]
    fitted.write_text(json.dumps(both | {"transfer": {"latency_s": 0.001, "bytes_per_s": 1e8}}))
    code, said = plan(facts(link_bytes_per_s=None), "--profile", str(fitted))
    assert code == 0 and free not in said


def test_targets_that_nobody_meets_fail(plan):
    code, said = plan(facts(), "--slo-ttft", "0.0001")
    assert code == 1 and "no placement meets TTFT 0.0001 s" in said


def test_the_key_is_sent_where_the_router_asks_for_one(plan, router, monkeypatch):
    plan(facts(), "--api-key", "k1", status=500)
    assert router[1].api_key == "Bearer k1" and router[1].path == PATH
    monkeypatch.setenv("PDSERVE_API_KEY", "k2")
    plan(facts(), status=500, url="http://{}/dashboard/")
    assert router[1].api_key == "Bearer k2" and router[1].path == PATH


def test_a_key_that_the_router_does_not_know_is_not_called_a_missing_one(plan, router):
    code, said = plan(facts(), "--api-key", "k2", status=401, url="{}/v1")
    assert code == 1 and "it does not know the key that was given (401)" in said and "k2" not in said
    assert router[1].path == PATH  # an address as OpenAI's clients are given it will do


@pytest.mark.parametrize("key", ["sec\nret", "s\u00e9cret", "", "se cret"])
def test_a_key_that_no_header_takes_is_refused_and_not_told(plan, monkeypatch, key):
    monkeypatch.setenv("PDSERVE_API_KEY", key)
    code, said = plan(facts())
    assert code == 2 and said.startswith("pdserve plan: error: PDSERVE_API_KEY is hidden; it must be printable ASCII")
    assert said.count("\n") == 1 and "cret" not in said
    assert plan(facts(), "--api-key", "k1")[0] == 0  # the flag stands in for it


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, 401, "it asks for a key: give --api-key or PDSERVE_API_KEY (401)"),
        ({}, 403, "the key speaks for one tenant"),
        ({}, 404, f"it has no {PATH}: another version"),
        ({}, 500, "it could not answer (500)"),
        (b"<html>", 200, "is not a router of pdserve"),
        ({"state": 1}, 200, "is not a router of pdserve"),
        (facts(**{KEY: 1}), 200, f"{KEY} is 1; this one reads {FORMAT}"),
        (facts(workers=[]), 200, "no worker is up"),
        (facts(decode=0), 200, "no decode worker is up"),
        (facts(num=0), 200, "no request has ended yet; 100 are needed"),
        (facts(num=99), 200, "99 requests ended in the last 100 s; 100 are needed"),
        (facts(slo={"ttft_s": 1.0, "tpot_s": None}), 200, "--slo-tpot is missing"),
        (facts(workers=[worker("prefill", latency=None), worker("decode")]), 200, "no prefill worker has measured"),
        (facts(workers=[worker("decode", num_blocks=0)]), 200, "num_blocks is 0; it must be"),
        (facts(workers=[worker("decode") | {"role": "cook"}]), 200, "what it says cannot be: role of worker"),
        (facts(requests={"window_s": 1.0, "num_unknown": 0, "arrival_s": [1]}), 200, "must be a list of numbers"),
        (facts(requests=facts()["requests"] | {"arrival_s": [0.0, 10**400]}), 200, "must be a list of numbers"),
        (facts(requests=facts()["requests"] | {"cached_tokens": [1]}), 200, "must be equally long"),
        (facts(requests=facts()["requests"] | {"arrival_s": [1.0, 2.0]}), 200, "2 requests came in the last 100 s"),
    ],
)
def test_each_failure_is_one_line(plan, given, status, words):
    code, said = plan(given, status=status)
    assert code in (1, 2) and words in said, said
    assert said.count("\n") == 1 and said.startswith("pdserve plan: error: ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workload", "azure-conv"], "--workload means nothing to plan --live"),
        (["--gpu", "h100"], "--gpu means nothing"),
        (["--tp", "2"], "--tp means nothing"),
        (["--model", "m"], "--model means nothing"),
        (["--compat", "distserve"], "--compat means nothing"),
        (["--tls-ca", "f"], "--tls-ca means nothing to"),
        (["--every", "1", "-o", "P.json"], "--output means nothing to plan --live --every"),
        (["--attainment", "1.5"], "--attainment: 1.5"),
        (["--profile", "no-such-file"], "--profile no-such-file: "),
    ],
)
def test_flags_that_contradict_are_refused(plan, flags, words):
    code, said = plan(facts(), *flags)
    assert code in (2, 5) and words in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    "url", ["ftp://h:1", "localhost", "http://", "h:port", "http://u@h:1", "h:1?x=2", "http://[:1"]
)
def test_what_is_no_address_is_refused(plan, url):
    code, said = plan(facts(), url=url)
    assert code == 2 and "it must be HOST:PORT" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://a..b:80", "no host can be called 'a..b'"),
        ("h:1/\u00e9", "its path must be printable ASCII without spaces"),
        ("h:1/a b", "its path must be printable ASCII without spaces"),
    ],
)
def test_what_nothing_can_be_sent_to_is_refused(plan, url, words):
    code, said = plan(facts(), url=url)
    assert code == 2 and words in said and said.count("\n") == 1, said


def test_flags_of_a_running_cluster_need_one(capsys):
    code = main(["plan", "--every", "1"])
    assert code == 2 and "--every means nothing to plan without --live" in capsys.readouterr().err


def test_nobody_there_and_no_http_are_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]

        def answer() -> None:
            one, _ = door.accept()
            with one:
                one.recv(1)
                one.sendall(b"\x00\x00\x00 not HTTP\r\n\r\n")
                one.recv(1 << 16)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StartError, match="does not speak HTTP"):
            router_of(f"127.0.0.1:{port}", None, None).ask()
        thread.join()
    with pytest.raises(StartError, match="nobody answers there"):
        router_of(f"127.0.0.1:{port}", None, None).ask()


def test_one_who_answers_too_slowly_is_given_up(monkeypatch):
    """Though every read gets a byte."""
    monkeypatch.setattr("deploy.planning.live_fetch.LIMIT_S", 0.3)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as door:

        def drip() -> None:
            one, _ = door.accept()
            with one:
                one.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        one.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(StartError, match=r"did not answer within 0\.3 s"):
            router_of(f"127.0.0.1:{door.getsockname()[1]}", None, None).ask()
        stop.set()
        thread.join()


def test_a_name_that_is_looked_up_too_long_is_given_up(monkeypatch):
    """No socket has a limit then."""
    monkeypatch.setattr("deploy.planning.live_fetch.LIMIT_S", 0.1)
    found = threading.Event()

    def slowly(*_: object, **__: object) -> list[object]:
        found.wait(10.0)
        raise OSError("nobody has that name")

    monkeypatch.setattr("socket.getaddrinfo", slowly)
    with pytest.raises(StartError, match=r"did not answer within 0\.1 s"):
        router_of("some.name:80", None, None).ask()
    found.set()


def test_again_and_again_a_line_each(plan, monkeypatch, router, capsys):
    """A router that goes away is a line, not an end; Ctrl-C is the end."""
    rounds = iter([200, 404, None])

    def asleep(_: float) -> None:
        if (status := next(rounds)) is None:
            raise KeyboardInterrupt
        router[1].status = status

    monkeypatch.setattr("deploy.planning.live.time.sleep", asleep)
    code, said = plan(facts(num=BUSY), "--every", "5")
    first, again, gone = said.splitlines()
    assert code == 0 and "/s carried now; worth a change: prefill 3xworker" in first
    assert again[9:] == first[9:] and "another version" in gone
