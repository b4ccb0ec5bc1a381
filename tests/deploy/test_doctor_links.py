"""The doctor's links: measured between real processes over real transports, and each injected fault is named."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.doctor.finding import Finding, Status
from deploy.doctor.judge import judge_links
from deploy.doctor.link_end import LinkFigure
from deploy.doctor.links import LinkPlan, measure_links, probe_command

SMALL = 8 << 20  # bytes; enough to tell a slow link from a fast one
FAULTY = str(Path(__file__).with_name("faulty_probe.py"))


def with_fault(**faults: str) -> Callable[[str], list[str]]:
    """Some workers' probes have a fault, the others none."""
    named = {worker.replace("_", "-"): fault for worker, fault in faults.items()}

    def command(worker_id: str) -> list[str]:
        fault = named.get(worker_id)
        return probe_command(worker_id) if fault is None else [sys.executable, FAULTY, fault]

    return command


def measured(plan: LinkPlan, command: Callable[[str], list[str]] = probe_command) -> dict[str, LinkFigure]:
    return {f"{one.src} -> {one.dst}": one for one in asyncio.run(measure_links(plan, command))}


def judged(figures: dict[str, LinkFigure]) -> dict[str, Finding]:
    return {one.check: one for one in judge_links(list(figures.values()))}


@pytest.mark.e2e
def test_a_slow_link_is_named_and_only_that_one(tmp_path: Path) -> None:
    """Every pair is measured; the one whose decode worker is slow stands out."""
    figures = measured(LinkPlan(1, 3, total_bytes=SMALL), with_fault(decode_1="slow"))
    assert list(figures) == [f"prefill-0 -> decode-{n}" for n in range(3)]
    for figure in figures.values():
        assert (figure.error, figure.transport, figure.limit) == ("", "shm", "memcpy")
        assert figure.bytes_per_second > 0 and 0 < figure.latency_s < 1 and figure.limit_bytes_per_second > 0
    slow = judged(figures)["prefill-0 -> decode-1"]
    assert slow.status is Status.WARN and "slow" in slow.found
    assert figures["prefill-0 -> decode-1"].bytes_per_second == min(one.bytes_per_second for one in figures.values())


@pytest.mark.e2e
@pytest.mark.slow
def test_a_silent_fallback_is_named_with_its_reason() -> None:
    """KV still moves, over gloo: a warning that says why not over shm."""
    figures = measured(LinkPlan(1, 1, total_bytes=SMALL), with_fault(decode_0="forbidden"))
    figure = figures["prefill-0 -> decode-0"]
    assert (figure.wanted, figure.transport, figure.limit, figure.error) == ("shm", "gloo", "TCP", "")
    found = judged(figures)["prefill-0 -> decode-0"]
    assert found.status is Status.WARN and "fell back from shm" in found.found
    assert "shm should have worked" in found.hint and "Operation not permitted" in found.hint


@pytest.mark.e2e
def test_a_link_that_does_not_work_fails_with_its_reason() -> None:
    """Nothing else was allowed; and a probe that dies."""
    figures = measured(LinkPlan(1, 1, "shm", total_bytes=SMALL), with_fault(decode_0="forbidden"))
    found = judged(figures)["prefill-0 -> decode-0"]
    assert found.status is Status.FAIL and "Operation not permitted" in found.found
    found = judged(measured(LinkPlan(1, 1, total_bytes=SMALL), with_fault(prefill_0="dies")))["prefill-0 -> decode-0"]
    assert found.status is Status.FAIL and "exit code 7" in found.found


@pytest.mark.e2e
def test_the_command_measures_the_links_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a user runs it: the table, and the figures for programs."""
    file = tmp_path / "doctor.json"
    ports = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    assert (
        main(["doctor", "--prefill", "2", "--decode", "1", "--kv-transport", "shm", "--json", str(file), *ports]) == 0
    )
    out = capsys.readouterr().out
    said = json.loads(file.read_text())
    assert [(one["src"], one["dst"], one["transport"]) for one in said["links"]] == [
        ("prefill-0", "decode-0", "shm"), ("prefill-1", "decode-0", "shm"),
    ]  # fmt: skip
    for link in said["links"]:
        assert f"{link['src']} -> {link['dst']}" in out and link["bytes_per_second"] > 1e6


def figure(src: str, gb_per_s: float, **more: object) -> LinkFigure:
    values = {"wanted": "shm", "transport": "shm", "bytes_per_second": gb_per_s * 1e9, "latency_s": 1e-4,
              "limit": "memcpy", "limit_bytes_per_second": 10e9}  # fmt: skip
    return LinkFigure(src, "decode-0", **{**values, **more})


def test_links_are_judged_by_the_machine_and_by_their_peers() -> None:
    """Below a share of the limit; below half of the others' median, of the same transport only."""

    def words(*figures: LinkFigure) -> list[Status]:
        return [one.status for one in judge_links(figures)]

    assert words(figure("a", 8.0), figure("b", 8.0)) == [Status.OK, Status.OK]
    assert words(figure("a", 3.9)) == [Status.WARN]
    assert words(figure("a", 9.5), figure("b", 9.5), figure("c", 4.5)) == [Status.OK, Status.OK, Status.WARN]
    gloo = {"wanted": "gloo", "transport": "gloo", "limit": "TCP", "limit_bytes_per_second": 2e9}
    assert words(figure("a", 9.5), figure("b", 1.0, **gloo)) == [Status.OK, Status.OK]
    assert words(figure("a", 1.0, limit="", limit_bytes_per_second=0.0)) == [Status.OK]
    assert words(figure("a", 0.0, error="no way")) == [Status.FAIL]
