"""Every alert fires when it should and only then, in Prometheus' own rule tester, for targets that people promise."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observability.alerts import alert_groups
from deploy.observability.bundle import Bundle
from deploy.observability.burn_rates import WINDOWS, burn_rates
from deploy.observability.names import ATTAINMENT, GOODPUT, misses
from deploy.observability.recording import recording_groups

TARGETS = (0.9, 0.95, 0.99, 0.999)
MINUTES = 75
PER_MINUTE = 600.0
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

Series = dict[str, str]
BURNS = ("PdserveSloBurnSlow", "PdserveSloBurnMedium", "PdserveSloBurnFast")
BELOW = "PdserveAttainmentBelowTarget"


def series(name: str, **labels: str) -> str:
    own = {"job": "pdserve", "instance": "router:8000", "model": "m", **labels}
    return f"{name}{{{', '.join(f'{key}={value!r}' for key, value in own.items())}}}".replace("'", '"')


def up(worker: str, role: str) -> str:
    return series("pdserve_worker_up", worker=worker, role=role)


def judged(verdict: str) -> str:
    return series("pdserve_slo_requests_total", verdict=verdict, slo_class="chat", blame="none", tenant="default")


def ended(outcome: str) -> str:
    return series("pdserve_requests_total", outcome=outcome)


def link(src: str, dst: str) -> str:
    return series("pdserve_link_bandwidth_bytes_per_second", src=src, dst=dst)


def constant(value: float, minutes: int = MINUTES) -> str:
    return f"{value:g}x{minutes}"


def growing(per_minute: float, minutes: int = MINUTES) -> str:
    return f"0+{per_minute:.8f}x{minutes}"


UP = series("up")
LEAKED = series("pdserve_kv_leaked_blocks")
DONE = series("pdserve_kv_transfer_seconds_count")
FAILED = series("pdserve_kv_transfer_failures_total", reason="PeerLost")
MOVED = series("pdserve_kv_transfer_bytes_total", transport="shm")
WAITING = series("pdserve_queue_depth", role="decode")
GONE = f"{constant(1, 60)} stale"


def healthy(target: float) -> Series:
    """A cluster with load that keeps its promise."""
    misses = (1 - target) / 2
    return {
        UP: constant(1),
        **{up(f"{role}-{n}", role): constant(1) for role in ("prefill", "decode") for n in range(2)},
        **{link(f"prefill-{p}", f"decode-{d}"): constant(2e9) for p in range(2) for d in range(2)},
        judged("met"): growing(PER_MINUTE * (1 - misses)),
        judged("missed"): growing(PER_MINUTE * misses),
        ended("finished"): growing(PER_MINUTE),
        ended("failed"): growing(PER_MINUTE * misses),
        LEAKED: constant(0),
        DONE: growing(PER_MINUTE),
        MOVED: growing(PER_MINUTE * 2e7),
        WAITING: " ".join(str(100 * (n % 3)) for n in range(MINUTES)),
        series("pdserve_running_sequences", worker="decode-0"): constant(8),
    }


def missing(share: float) -> Series:
    return {judged("met"): growing(PER_MINUTE * (1 - share)), judged("missed"): growing(PER_MINUTE * share)}


Scenarios = dict[str, tuple[Series, set[str]]]
"""What happens -> (series that differ from a healthy cluster's, the alerts that must fire: these and no other)."""


def slo_scenarios(target: float) -> Scenarios:
    """Attainment above and below the target."""
    fast, medium, slow = (rate.max_misses(target) for rate in burn_rates(target))
    recovered = " ".join(str(PER_MINUTE * min(n, MINUTES - 8)) for n in range(MINUTES + 1))
    return {
        "healthy": ({}, set()),
        "the promise is just kept": (missing(slow * 0.98), set()),
        "misses between slow and medium": (missing((slow + medium) / 2), {BURNS[0], BELOW}),
        "misses between medium and fast": (missing((medium + fast) / 2), {*BURNS[:2], BELOW}),
        "misses above fast": (missing((fast + 1) / 2), {*BURNS, BELOW}),
        "nothing met, and never was": ({judged("met"): "_", judged("missed"): growing(PER_MINUTE)}, {*BURNS, BELOW}),
        "all missed until 8 minutes ago": (
            {judged("met"): f"0x{MINUTES - 8} 0+{PER_MINUTE * 3:g}x8", judged("missed"): recovered},
            {*BURNS[:2], BELOW},
        ),
        "five requests, all missed": (
            {judged("met"): "_", judged("missed"): f"0x{MINUTES - 30} 5x30"},
            set(),
        ),
    }


def cluster_scenarios() -> Scenarios:
    """Trouble that has nothing to do with the target."""
    both_prefill = {up("prefill-0", "prefill"): GONE, up("prefill-1", "prefill"): GONE}
    everyone = {up(f"{role}-{n}", role): GONE for role in ("prefill", "decode") for n in range(2)}
    return {
        "requests fail, none is served": (
            {ended("finished"): f"{growing(PER_MINUTE, 60)} {constant(PER_MINUTE * 60, 15)}",
             ended("failed"): growing(PER_MINUTE)},
            {"PdserveNothingServed"},
        ),
        "the router is down": ({UP: f"{constant(1, 60)} {constant(0, 15)}", **everyone}, {"PdserveRouterAbsent"}),
        "no router is scraped": ({UP: "_", **everyone}, {"PdserveRouterAbsent"}),
        "a worker is gone": ({up("decode-1", "decode"): GONE}, {"PdserveWorkerDown"}),
        "a role is gone": (both_prefill, {"PdserveWorkerDown", "PdserveRoleWithoutWorkers"}),
        "a worker changes its role": (
            {up("prefill-1", "prefill"): GONE, up("prefill-1", "decode"): f"_x61 {constant(1, 13)}"},
            set(),
        ),
        "a block leaks": ({LEAKED: f"{constant(0, 70)} {constant(1, 5)}"}, {"PdserveKvLeak"}),
        "transfers fail": ({FAILED: growing(PER_MINUTE / 50)}, {"PdserveTransferFailures"}),
        "one transfer in a thousand fails": ({FAILED: growing(PER_MINUTE / 1000)}, set()),
        "every transfer fails": ({DONE: "_", FAILED: growing(PER_MINUTE)}, {"PdserveTransferFailures"}),
        "a link is slower than its peers": ({link("prefill-0", "decode-0"): constant(0.9e9)}, {"PdserveLinkSlow"}),
        "a link is slower than it was": (
            {link(f"prefill-{p}", f"decode-{d}"): f"{constant(2e9, 60)} {constant(0.9e9, 15)}"
             for p in range(2) for d in range(2)},
            {"PdserveLinkSlow"},
        ),
        "a link is slower than its peers, for transfers of a few kilobytes": (
            {link("prefill-0", "decode-0"): constant(0.9e9), MOVED: growing(PER_MINUTE * 2e4)}, set(),
        ),
        "the queue grows": ({WAITING: f"0x20 {growing(10, 55)}"}, {"PdserveQueueGrowing"}),
        "a short queue grows": ({WAITING: f"0x65 {growing(1, 10)}"}, set()),
    }  # fmt: skip


def rule_tester_input(target: float, scenarios: Scenarios) -> dict[str, Any]:
    """The input of `promtool test rules`: at the end of each scenario, exactly its alerts fire."""
    tests = []
    for name, (changes, firing) in scenarios.items():
        given = {**healthy(target), **changes}
        samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)]
        tests.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": [{"series": one, "values": values} for one, values in given.items()],
                "promql_expr_test": [
                    {
                        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{MINUTES}m",
                        "exp_samples": samples,
                    }
                ],
            }
        )
    order = [group["name"] for group in [*recording_groups(target), *alert_groups(target)]]
    return {
        "rule_files": ["rules/recording.yml", "rules/alerts.yml"],
        "evaluation_interval": "1m",
        "group_eval_order": order,
        "tests": tests,
    }


def written(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def promtool(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
@pytest.mark.parametrize("target", TARGETS)
def test_alerts_on_the_slo_fire_when_they_should_and_only_then(target: float, tmp_path: Path) -> None:
    """Scenarios of a cluster in trouble, each with the exact set of alerts that fire at its end."""
    check_firing(target, slo_scenarios(target), tmp_path)


@needs_promtool
def test_alerts_of_the_cluster_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """The same for routers, workers, handoffs and queues."""
    check_firing(0.9, cluster_scenarios(), tmp_path)


def check_firing(target: float, scenarios: Scenarios, directory: Path) -> None:
    check_rules(rule_tester_input(target, scenarios), target, directory)


def check_rules(tests: dict[str, Any], target: float, directory: Path) -> None:
    written(directory, Bundle(target=target).files())
    (directory / "test.yml").write_text(yaml.safe_dump(tests, sort_keys=False))
    promtool("test", "rules", "test.yml", cwd=directory)


@needs_promtool
@pytest.mark.parametrize(
    ("met", "missed", "goodput", "attainment"), [(540, 60, 9.0, 0.9), (600, None, 10.0, 1.0), (None, 600, 0.0, 0.0)]
)
def test_goodput_and_attainment_are_counted(
    met: int | None, missed: int | None, goodput: float, attainment: float, tmp_path: Path
) -> None:
    """Also where no request ever met, or ever missed: a series that was never counted does not exist."""
    given = {one: growing(n) for one, n in ((judged("met"), met), (judged("missed"), missed)) if n is not None}
    values = {GOODPUT: goodput, ATTAINMENT: attainment, misses("1h"): 1 - attainment}
    expected = [
        {
            "expr": f"round({name}, 0.001)",
            "eval_time": f"{MINUTES}m",
            "exp_samples": [{"labels": '{model="m", slo_class="chat"}', "value": round(value, 3)}],
        }
        for name, value in values.items()
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": one, "values": numbers} for one, numbers in given.items()],
        "promql_expr_test": expected,
    }
    check_rules(rule_tester_input(0.9, {}) | {"tests": [test]}, 0.9, tmp_path)


def test_no_alert_is_without_a_scenario() -> None:
    """The table above fires every alert there is."""
    tested = set().union(*(firing for _, firing in {**slo_scenarios(0.9), **cluster_scenarios()}.values()))
    assert tested == {rule["alert"] for group in alert_groups(0.9) for rule in group["rules"]}


@needs_promtool
@pytest.mark.parametrize("target", TARGETS)
def test_prometheus_accepts_configuration_and_rules(target: float, tmp_path: Path) -> None:
    """promtool checks what is written."""
    bundle = Bundle(
        target=target, routers=("router-0:8000", "[::1]:8000"), model='a "model"', credentials_file="key", workers=True
    )
    directory = written(tmp_path, bundle.files() | {"key": "secret"})
    said = promtool("check", "config", "prometheus.yml", cwd=directory)
    assert "2 rule files found" in said
    promtool("check", "rules", "--lint-fatal", "rules/alerts.yml", "rules/recording.yml", cwd=directory)


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool (prometheus-alertmanager) is not installed")
def test_alertmanager_accepts_its_stub(tmp_path: Path) -> None:
    """amtool checks routes, receivers and what inhibits what."""
    directory = written(tmp_path, Bundle().files())
    subprocess.run(["amtool", "check-config", "alertmanager.yml"], cwd=directory, check=True, capture_output=True)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.93, 0.95, 0.99, 0.999, 0.99999])
def test_burn_rates_can_be_reached(target: float) -> None:
    """No factor asks for more misses than there are requests, and the faster alert asks for more."""
    fast, medium, slow = burn_rates(target)
    assert slow.factor == 1.0
    assert 1.0 < medium.factor < fast.factor < 1.0 / (1.0 - target)
    assert fast.max_misses(target) < 1.0
    assert {window for rate in (fast, medium, slow) for window in (rate.long, rate.short)} <= set(WINDOWS)


def test_burn_rates_of_a_strict_target_are_the_usual_ones() -> None:
    """14.4 and 6, where they can be reached."""
    assert [rate.factor for rate in burn_rates(0.999)] == [14.4, 6.0, 1.0]
