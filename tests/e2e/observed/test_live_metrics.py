"""A mock cluster as users start it: every documented series, workers' own ports, the request log, the traces."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GRPC_TRACE = "0af7651916cd43dd8448eb211c80319c"
NUM_REQUESTS, MAX_TOKENS = 12, 20
CONTRACT = {  # DESIGN section 7, names and labels
    "time_to_first_token_seconds": set(), "time_per_output_token_seconds": set(), "inter_token_latency_seconds": set(),
    "request_phase_seconds": {"phase"}, "requests": {"outcome"},
    "slo_requests": {"verdict", "blame", "slo_class", "tenant"}, "queue_depth": {"role"},
    "running_sequences": {"worker"}, "kv_blocks": {"worker", "role", "state"}, "kv_leaked_blocks": set(),
    "kv_transfer_seconds": set(), "kv_transfer_bytes": {"transport"}, "kv_transfer_failures": {"reason"},
    "link_bandwidth_bytes_per_second": {"src", "dst"}, "prompt_tokens": set(), "generation_tokens": set(),
    "prefix_cache_hit_tokens": set(), "worker_up": {"worker", "role"}, "step_seconds": {"role"}, "batch_size": {"role"},
}  # fmt: skip


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """Keeps the spans that it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self._came = threading.Condition()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._came:
            self.spans += [s for one in request.resource_spans for scope in one.scope_spans for s in scope.spans]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._came:
            assert self._came.wait_for(condition, 20.0), [span.name for span in self.spans]


@dataclass
class Live:
    """The cluster after its load."""

    server: Any
    collector: Collector
    log: Path
    answers: list[Any]
    pages: dict[str, str] = field(default_factory=dict)

    def page(self, url: str) -> str:
        with urllib.request.urlopen(url, timeout=10) as response:
            text: str = response.read().decode()
        return text

    def router_page(self) -> str:
        return self.page(f"http://{self.server.ready['http']}/metrics")

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


Serve = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory, serve_in: Serve, mock_profile: Path, make_request: Callable[..., Any]
) -> Iterator[Live]:
    """One prefill and two decode workers that have served some requests; the last test kills one."""
    directory, collector = tmp_path_factory.mktemp("live"), Collector()
    stub = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, stub)
    port = stub.add_insecure_port("127.0.0.1:0")
    stub.start()
    config = directory / "config.yaml"
    config.write_text("slo-classes: {gold: {ttft-s: 0.123, tpot-s: 0.0042}, hopeless: {ttft-s: 0.000011}}\n")
    log = directory / "requests.jsonl"
    flags = ["--mock", str(mock_profile), "--decode", "2", "--config", str(config), "--request-log", str(log),
             "--otlp-endpoint", f"http://127.0.0.1:{port}", "--worker-metrics-port", "0"]  # fmt: skip
    with serve_in(directory, "", *flags) as server:
        answers = []
        for n in range(NUM_REQUESTS):
            slo = {"class": ["gold", "hopeless", "default"][n % 3]}
            prompt = [n % 4, *range(100)]  # every fifth is in the prefix cache
            answers.append(server.generate(make_request(prompt, MAX_TOKENS, slo=slo, request_id=f"g{n}")))
        time.sleep(1.3)  # a status that knows of all of it
        yield Live(server, collector, log, answers)
    stub.stop(None).wait()


def families(text: str) -> dict[str, Any]:
    return {one.name.removeprefix("pdserve_"): one for one in text_string_to_metric_families(text)}


def value(found: dict[str, Any], family: str, suffix: str = "", **labels: str) -> float:
    """One sample; histograms and counters by their suffix."""
    named = [
        one.value
        for one in found[family].samples
        if one.name == f"pdserve_{family}{suffix}" and labels.items() <= one.labels.items()
    ]
    assert len(named) == 1, (family, suffix, labels, found[family].samples)
    return float(named[0])


def test_every_series_of_the_contract_with_plausible_values(live: Live) -> None:
    """Names, labels, and numbers that follow from what was asked."""
    found = families(live.router_page())
    assert CONTRACT.keys() <= found.keys(), CONTRACT.keys() - found.keys()
    for name, labels in CONTRACT.items():
        assert all(set(one.labels) - {"le"} == labels for one in found[name].samples), name
    n, tokens = NUM_REQUESTS, NUM_REQUESTS * MAX_TOKENS
    assert value(found, "requests", "_total", outcome="finished") == n
    assert value(found, "generation_tokens", "_total") == tokens
    assert value(found, "prompt_tokens", "_total") == n * 101
    assert value(found, "time_to_first_token_seconds", "_count") == n
    assert 0.0 < value(found, "time_to_first_token_seconds", "_sum") < n
    assert value(found, "time_per_output_token_seconds", "_count") == n
    assert value(found, "inter_token_latency_seconds", "_count") == tokens - n
    assert value(found, "e2e_request_latency_seconds", "_count") == n
    total_s = sum(value(found, "request_phase_seconds", "_sum", phase=one) for one in PHASES)
    assert total_s == pytest.approx(value(found, "e2e_request_latency_seconds", "_sum"), abs=1e-6)
    assert value(found, "kv_transfer_seconds", "_count") == n
    assert value(found, "kv_transfer_bytes", "_total", transport="shm") > 0
    assert all(one.value == 0.0 for one in found["kv_transfer_failures"].samples)
    assert 0 < value(found, "prefix_cache_hit_tokens", "_total") <= n * 101
    for dst in ("decode-0", "decode-1"):
        assert value(found, "link_bandwidth_bytes_per_second", src="prefill-0", dst=dst) > 0
    for role in ("prefill", "decode"):
        assert value(found, "queue_depth", role=role) == 0
        steps = value(found, "step_seconds", "_count", role=role)
        assert steps >= n and value(found, "batch_size", "_count", role=role) == steps
        assert value(found, "batch_size", "_sum", role=role) >= steps
    assert value(found, "kv_leaked_blocks") == 0
    for worker, role in (("prefill-0", "prefill"), ("decode-0", "decode"), ("decode-1", "decode")):
        assert value(found, "worker_up", worker=worker, role=role) == 1
        assert value(found, "running_sequences", worker=worker) == 0
        states = {one.labels["state"] for one in found["kv_blocks"].samples}
        assert states == {"free", "used", "cached", "leased", "quarantined"}
        assert value(found, "kv_blocks", worker=worker, role=role, state="cached") > 0
    assert value(found, "records_lost", "_total", sink="request_log") == 0


PHASES = ("queue", "prefill", "transfer", "decode_wait", "decode")


def test_every_verdict_is_counted_at_its_source(live: Live) -> None:
    """By class, as the clients were told; a class that nobody can meet is missed."""
    found = families(live.router_page())["slo_requests"].samples
    counted = {
        tuple(sorted(one.labels.items())): one.value for one in found if one.name.endswith("_total") and one.value
    }
    assert sum(counted.values()) == NUM_REQUESTS
    missed = [labels for labels in counted if dict(labels)["verdict"] == "missed"]
    told = [answer.complete.slo for answer in live.answers]
    assert sum(counted[one] for one in missed) == sum(not (one.met_ttft and one.met_tpot) for one in told)
    hopeless = {dict(one)["blame"] for one in missed if dict(one)["slo_class"] == "hopeless"}
    assert hopeless and hopeless <= {"queue", "prefill"}
    assert all((dict(one)["blame"] == "none") == (dict(one)["verdict"] == "met") for one in counted)


def test_thresholds_are_bucket_edges_and_buckets_are_fine_below_10_ms(live: Live) -> None:
    """TTFT and TPOT of every configured class."""
    found = families(live.router_page())
    edges = {name: {one.labels.get("le") for one in found[name].samples} for name in CONTRACT}
    assert {"0.123", "1.1e-05", "0.001", "0.0025", "0.005"} <= edges["time_to_first_token_seconds"]
    for name in ("time_per_output_token_seconds", "inter_token_latency_seconds"):
        assert {"0.0042", "0.001", "0.0025", "0.005"} <= edges[name]
    assert {"0.001", "0.0025", "0.005"} <= edges["step_seconds"]
    assert value(found, "slo_threshold_seconds", slo_class="gold", metric="tpot") == 0.0042


def test_the_document_lists_exactly_what_there_is(live: Live) -> None:
    """docs/metrics.md: every family of the page, and none that is not there."""
    documented = set(re.findall(r"^\| `pdserve_([a-z0-9_]+?)(?:_total)?(?:\{[^}]*\})?` \|", DOCUMENT.read_text(), re.M))
    assert documented == set(families(live.router_page())) | {"stale_messages"}


def test_workers_serve_their_own_and_the_router_lists_them(live: Live) -> None:
    """Prometheus' HTTP service discovery; the same names and values as the router's page."""
    listed = json.loads(live.page(f"http://{live.server.ready['http']}/metrics/targets"))
    workers = {one["labels"]["__meta_pdserve_worker"]: one for one in listed}
    assert set(workers) == {"prefill-0", "decode-0", "decode-1"}
    whole = families(live.router_page())
    for name, target in workers.items():
        own = families(live.page(f"http://{target['targets'][0]}/metrics"))
        role = target["labels"]["__meta_pdserve_role"]
        assert own.keys() <= whole.keys()
        assert value(own, "worker_up", worker=name, role=role) == 1
        assert value(own, "kv_leaked_blocks") == 0
        for state in ("free", "cached"):
            labels = {"worker": name, "role": role, "state": state}
            assert value(own, "kv_blocks", **labels) == value(whole, "kv_blocks", **labels)
        if name == "prefill-0":
            steps = value(own, "step_seconds", "_count", role="prefill")
            assert steps == value(whole, "step_seconds", "_count", role="prefill") > 0


def test_the_log_says_what_the_client_was_told(live: Live) -> None:
    """One line each, the same timing to the microsecond; phases add up."""
    lines = {one["request_id"]: one for one in live.records()}
    for n, answer in enumerate(live.answers):
        line, timing = lines[f"g{n}"], answer.complete.timing
        assert line["outcome"] == "finished" and line["transfer"]["transport"] == "shm"
        for phase in PHASES:
            assert line["phases"][f"{phase}_s"] == pytest.approx(getattr(timing, f"{phase}_s"), abs=1e-6)
        assert sum(line["phases"].values()) == pytest.approx(line["ended_s"], abs=1e-5)
        assert line["ttft_s"] == pytest.approx(timing.ttft_s, abs=1e-6)
        assert line["verdict"]["met_ttft"] == answer.complete.slo.met_ttft


def test_a_trace_goes_on_from_http_and_grpc(live: Live, make_request: Callable[..., Any]) -> None:
    """The client's traceparent is the parent of the request's span, behind either door."""
    body = json.dumps({"model": "mock", "prompt": [5, 6, 7] * 30, "max_tokens": 5, "ignore_eos": True}).encode()
    headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    http = urllib.request.Request(f"http://{live.server.ready['http']}/v1/completions", body, headers)
    with urllib.request.urlopen(http, timeout=20) as response:
        assert response.status == 200
    metadata = (("traceparent", f"00-{GRPC_TRACE}-b7ad6b7169203331-01"),)
    list(live.server.stub.Generate(make_request(list(range(90)), 5), metadata=metadata, timeout=20))
    for trace in (TRACE, GRPC_TRACE):
        spans: list[Any] = []

        def whole(trace: str = trace, spans: list[Any] = spans) -> bool:
            spans[:] = [one for one in live.collector.spans if one.trace_id.hex() == trace]
            return any(one.name == "request" for one in spans)

        live.collector.wait_for(whole)
        names = [one.name for one in sorted(spans, key=lambda one: one.start_time_unix_nano)]
        assert names[0] == "request" or "request" in names[:2]
        assert {"queue", "prefill", "decode"} <= set(names) and set(names) <= {"request", *PHASES}


def test_refusals_are_counted_and_logged(live: Live, make_request: Callable[..., Any]) -> None:
    """A request that the front refuses is a rejected one; the caller's own fault is no miss."""
    with pytest.raises(grpc.RpcError):
        live.server.generate(make_request([1, 2, 3], 10**6, request_id="refused"))
    deadline = time.monotonic() + 10.0
    while not (lines := [one for one in live.records() if one["request_id"] == "refused"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (line,) = lines
    assert (line["outcome"], line["error_status"], line["verdict"]) == ("rejected", "INVALID_ARGUMENT", None)
    assert value(families(live.router_page()), "requests", "_total", outcome="rejected") == 1


def test_a_dead_workers_series_disappear(live: Live) -> None:
    """From the page and from the list; what it counted where no worker is named stays. Last: it kills one."""
    before = families(live.router_page())
    live.server.kill("decode-1")
    deadline = time.monotonic() + 15.0
    while "decode-1" in (page := live.router_page()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    after = families(page)
    moved = value(after, "kv_transfer_bytes", "_total", transport="shm")
    assert moved >= value(before, "kv_transfer_bytes", "_total", transport="shm")
    listed = live.page(f"http://{live.server.ready['http']}/metrics/targets")
    assert "decode-1" not in listed and "decode-0" in listed
