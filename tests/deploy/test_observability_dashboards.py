"""The dashboards: current, well formed, and every query answered by a real Prometheus that watches a live cluster."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.cli import main
from deploy.observability.bundle import DASHBOARDS, Bundle
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc

START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
SETTINGS = """
slo-ttft-s: 5
slo-tpot-s: 1
slo-classes:
  strict: {ttft-s: 0.001, tpot-s: 0.0001}
"""
VARIABLES = {"$model": ".*", "$role": ".*", "$slo_class": ".*", "$__rate_interval": "20s"}
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


def boards() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    """`python -m deploy.observability.dashboards` changes nothing."""
    pytest.importorskip("grafana_foundation_sdk", reason="the dashboards' builder is a development dependency")
    from deploy.observability.dashboards import texts

    assert {path.name: path.read_text() for path in DASHBOARDS.iterdir()} == texts()


@pytest.mark.parametrize("name", [path.name for path in sorted(DASHBOARDS.glob("*.json"))])
def test_a_dashboard_can_be_provisioned(name: str) -> None:
    """A uid, a data source that the reader chooses, its variables, and panels that do not overlap."""
    board = boards()[name]
    assert board["uid"].startswith("pdserve-")
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(variables) == {"datasource", "model", "role", "slo_class"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = set()
    for panel in panels(board):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"] and panel["targets"], panel["title"]
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not own & places, panel["title"]
        places |= own


class Cluster:
    """`pdserve serve` with a mock engine, and clients that never stop asking."""

    def __init__(self, process: subprocess.Popen[bytes], ready_file: Path) -> None:
        self.process, self.ready_file = process, ready_file
        self.ready: dict[str, Any] = json.loads(ready_file.read_text())
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(4)]

    def start_traffic(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop_traffic(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        """Long prompts, half of them seen before, of two SLO classes; one answer after the other."""
        rng = random.Random(seed)
        known = [rng.randrange(256) for _ in range(1500)]
        with grpc.insecure_channel(self.ready["grpc"]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            while not self._stop.is_set():
                ids = known[: rng.choice([800, 1500])] + [rng.randrange(256) for _ in range(200)]
                slo = pb.Slo(**{"class": rng.choice(["default", "strict"])})
                request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), max_tokens=20, ignore_eos=True, slo=slo)
                for _ in stub.Generate(request, timeout=20):
                    pass


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers of each role."""
    directory = tmp_path_factory.mktemp("cluster")
    profile, config, ready = (directory / name for name in ("profile.json", "serve.yaml", "ready.json"))
    profile.write_text(json.dumps({"base_s": 0.004, "per_prefill_token_s": 4e-5, "per_decode_sequence_s": 5e-5,
                                   "per_context_token_s": 0.0}))  # fmt: skip
    config.write_text(SETTINGS)
    command = [sys.executable, "-m", "deploy.cli", "serve", "--mock", str(profile), "--prefill", "2", "--decode", "2",
               "--config", str(config), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
               "--max-num-batched-tokens", "256", "--worker-metrics-port", "0", "--ready-file", str(ready)]  # fmt: skip
    log = directory / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.05)
        running = Cluster(process, ready)
        running.start_traffic()
        yield running
        running.stop_traffic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, log.read_text()[-4000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


class Prometheus:
    """A running one."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; AssertionError with Prometheus' own words when it refuses."""
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            said = json.load(answer)
        assert said["status"] == "success", said
        return said["data"]

    def has_values(self, expression: str) -> bool:
        """Whether a panel would draw something: at least one series with a number."""
        results = self.get("query", query=expression)["result"]
        return any(math.isfinite(float(one["value"][1])) for one in results)

    def label_values(self, query: str) -> list[str]:
        """What Grafana makes of label_values(selector, label)."""
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert found is not None, query
        values: list[str] = self.get(f"label/{found[2]}/values", **{"match[]": substituted(found[1])})
        return values


def substituted(expression: str) -> str:
    """With every variable set to all, as Grafana does it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the cluster once a second, by the configuration that we ship."""
    directory = tmp_path_factory.mktemp("prometheus")
    bundle = Bundle(routers=(cluster.ready["http"],), model=cluster.ready["model"], workers=True, scrape_interval="1s")
    for name, text in bundle.files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("interval: 1m", "interval: 1s"))  # no waiting for the long windows' turn
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
               f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]  # fmt: skip
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=directory)
    try:
        running, deadline = Prometheus(port), time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                if running.has_values('up{job="pdserve"} == 1'):
                    break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(10)


@needs_prometheus
@pytest.mark.e2e
def test_every_panel_and_variable_answers(cluster: Cluster, prometheus: Prometheus) -> None:
    """No query of a panel is refused or empty; failed transfers are a zero, not a hole."""
    waiting = {
        f"{panel['title']} {target['refId']}": substituted(target["expr"])
        for board in boards().values()
        for panel in panels(board)
        for target in panel["targets"]
    }
    assert len(waiting) > 40
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while waiting:
        waiting = {name: query for name, query in waiting.items() if not prometheus.has_values(query)}
        assert time.monotonic() < deadline, "no answer to:\n" + "\n".join(map(" = ".join, waiting.items()))
        time.sleep(0.5)
    variables = {one["name"]: one for board in boards().values() for one in board["templating"]["list"]}
    values = {name: prometheus.label_values(one["query"]) for name, one in variables.items() if one["type"] == "query"}
    assert values == {"model": ["mock"], "role": ["decode", "prefill"], "slo_class": ["default", "strict"]}


@needs_prometheus
@pytest.mark.e2e
def test_the_workers_own_ports_are_found_and_scraped(cluster: Cluster, prometheus: Prometheus) -> None:
    """Through the router's list, as a job of their own; what the router shows is counted once."""
    wanted = {worker["id"] for worker in cluster.ready["workers"]}
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        found = prometheus.get("query", query='pdserve_worker_up{job="pdserve-workers"} == 1')["result"]
        if {one["metric"]["worker"] for one in found} == wanted:
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert {one["metric"]["model"] for one in found} == {"mock"}
    assert prometheus.get("query", query="sum(role:pdserve_worker_up:sum)")["result"][0]["value"][1] == "4"


@needs_prometheus
@pytest.mark.e2e
def test_the_rules_run_on_a_live_cluster(prometheus: Prometheus) -> None:
    """Prometheus evaluates every rule without an error."""
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 20
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


@needs_prometheus
@pytest.mark.e2e
def test_an_alert_fires_on_a_live_cluster(prometheus: Prometheus) -> None:
    """For the class whose thresholds nothing can meet, and for no other; the cluster itself is well."""
    firing, deadline = 'ALERTS{alertstate="firing"}', time.monotonic() + ANSWER_TIMEOUT_S
    while not prometheus.has_values(f'{firing} and ALERTS{{alertname="PdserveSloBurnFast"}}'):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found = [one["metric"] for one in prometheus.get("query", query=firing)["result"]]
    assert {one["slo_class"] for one in found} == {"strict"}
    assert {one["alertname"] for one in found} <= {f"PdserveSloBurn{speed}" for speed in ("Fast", "Medium", "Slow")}


@pytest.mark.e2e
def test_the_doctor_reads_a_live_cluster(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pdserve doctor --ready-file`: workers, transfers, and the bandwidth that traffic found on every link."""
    file, deadline = tmp_path / "found.json", time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        assert main(["doctor", "--ready-file", str(cluster.ready_file), "--json", str(file)]) == 0
        links = json.loads(file.read_text())["links"]
        if all(link["bytes_per_second"] for link in links):
            break
        assert time.monotonic() < deadline, links
    assert {(link["src"], link["dst"]) for link in links} == {
        (f"prefill-{p}", f"decode-{d}") for p in (0, 1) for d in (0, 1)
    }
    out = capsys.readouterr().out
    assert "prefill 2, decode 2" in out and "in the last transfer" in out
