"""Every series of the design is there, valid, summed over workers, and gone with them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdserve.sampling import FinishReason, SamplingParams
from pdserve.slo import Blame, Slo
from pdserve.v1 import worker_pb2
from router.core.config import CoreConfig
from router.core.fleet import Worker
from router.core.messages import BlockCounts, StatusReport, WorkerIdentity
from router.core.stats import StatsLine
from router.token_gaps import GapHistogram
from scheduling.latency import LatencyCoefficients
from scheduling.routing import Role

ROUTERS_OWN = {
    "pdserve_time_to_first_token_seconds", "pdserve_time_per_output_token_seconds",
    "pdserve_inter_token_latency_seconds", "pdserve_request_phase_seconds", "pdserve_requests",
    "pdserve_slo_requests", "pdserve_queue_depth", "pdserve_running_sequences", "pdserve_kv_blocks",
    "pdserve_kv_leaked_blocks", "pdserve_kv_transfer_seconds", "pdserve_prompt_tokens", "pdserve_generation_tokens",
    "pdserve_prefix_cache_hit_tokens", "pdserve_worker_up", "pdserve_event_loop_lag_seconds",
}  # fmt: skip
WORKERS = {
    "pdserve_kv_transfer_bytes", "pdserve_kv_transfer_failures", "pdserve_link_bandwidth_bytes_per_second",
    "pdserve_step_seconds", "pdserve_batch_size",
}  # fmt: skip


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample; fails on text that Prometheus would refuse or that names a series twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    families = []
    for family in text_string_to_metric_families(text):
        families.append(family.name)
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    assert len(families) == len(set(families))
    return found


def value(page: str, name: str, /, **labels: str) -> float | None:
    return series(page).get((f"pdserve_{name}", frozenset(labels.items())))


def status(role: str, steps: list[int], **samples: float) -> worker_pb2.WorkerStatus:
    """A worker's account, with a link of its own and a counter by transport."""
    one = worker_pb2.WorkerStatus(
        blocks=worker_pb2.BlockCounts(free=10, used=5, cached=3, leased=2, quarantined=1),
        queued_sequences=4,
        running_sequences=7,
    )
    one.histograms.add(
        name="step_seconds", labels={"role": role}, upper_bounds=[0.1, 1.0], counts=steps, sum=float(sum(steps))
    )
    one.histograms.add(name="batch_size", labels={"role": role}, upper_bounds=[1], counts=[1, 2], sum=5)
    one.samples.add(name="kv_transfer_bytes_total", labels={"transport": "shm"}, value=samples.get("moved", 100.0))
    one.samples.add(name="kv_transfer_failures_total", labels={"reason": "PeerLost"}, value=1)
    one.samples.add(name="link_bandwidth_bytes_per_second", labels={"src": "prefill-0", "dst": "decode-0"}, value=1e9)
    return one


async def reported(cluster: Any, worker: Any, message: worker_pb2.WorkerStatus) -> None:
    """Until the router knows this status (told apart by promised_blocks)."""
    message.promised_blocks = 1 + worker.status.promised_blocks
    worker.status = message
    while True:
        known = cluster.core.fleet.get(worker.worker_id).status
        if known is not None and known.promised_blocks == message.promised_blocks:
            return
        await asyncio.sleep(0.01)  # a status has no answer to wait for


def test_every_series_of_the_design_is_there(harness: Any) -> None:
    """The router's from the start or the first request, the workers' with their status; bounded labels."""

    async def walk(cluster: Any) -> None:
        await reported(cluster, cluster.prefill, status("prefill", [1, 0, 0]))
        await reported(cluster, cluster.decode, status("decode", [0, 3, 1]))
        stream = cluster.submit(slo=Slo("gold", ttft_s=30.0), tenant="stranger", sampling=SamplingParams(max_tokens=3))
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.prefill.tokens(key, 0, 11, queue_s=0.0, first_token_s=0.0, cached=16)
        await harness.read_tokens(stream, 1)
        cluster.decode.handoff(key, "COMMITTED")
        cluster.decode.tokens(key, 1, 12, 13, finish=FinishReason.LENGTH)
        await harness.read_all(stream, 1)
        text = cluster.metrics()
        names = {family.name for family in text_string_to_metric_families(text)}
        assert names >= ROUTERS_OWN | WORKERS, sorted((ROUTERS_OWN | WORKERS) - names)
        assert value(text, "requests_total", outcome="finished") == 1.0
        met = {"verdict": "met", "blame": "none", "slo_class": "gold", "tenant": "default"}
        assert value(text, "slo_requests_total", **met) == 1.0
        assert value(text, "prompt_tokens_total") == 40.0
        assert value(text, "generation_tokens_total") == 3.0
        assert value(text, "prefix_cache_hit_tokens_total") == 16.0
        assert value(text, "prompts_computed_on_decode_total") == 0.0
        assert value(text, "kv_transfer_seconds_count") == 1.0
        assert value(text, "inter_token_latency_seconds_count") == 2.0
        assert value(text, "worker_up", worker="prefill-0", role="prefill") == 1.0
        assert value(text, "queue_depth", role="decode") == 4.0
        assert value(text, "running_sequences", worker="decode-0") == 7.0
        states = {"free": 10.0, "used": 5.0, "cached": 3.0, "leased": 2.0, "quarantined": 1.0}
        for state, count in states.items():
            assert value(text, "kv_blocks", worker="decode-0", role="decode", state=state) == count
        assert value(text, "kv_leaked_blocks") == 0.0
        assert value(text, "step_seconds_bucket", role="decode", le="1.0") == 3.0
        assert value(text, "step_seconds_bucket", role="decode", le="+Inf") == 4.0
        assert value(text, "step_seconds_count", role="prefill") == 1.0

    harness.run(1, 1, walk, CoreConfig(tick_s=0.05, slos=(Slo(), Slo("gold", 30.0, 0.042))))


def test_workers_of_a_role_add_up_and_a_dead_ones_series_vanish(harness: Any) -> None:
    """What names it disappears; shared counters keep its share and never fall."""

    async def walk(cluster: Any) -> None:
        prefill, first, second = cluster.workers
        await reported(cluster, prefill, worker_pb2.WorkerStatus())
        await reported(cluster, first, status("decode", [0, 3, 1], moved=100.0))
        await reported(cluster, second, status("decode", [1, 0, 0], moved=11.0))
        before = cluster.metrics()
        assert value(before, "kv_transfer_bytes_total", transport="shm") == 111.0
        assert value(before, "step_seconds_count", role="decode") == 5.0
        assert value(before, "queue_depth", role="decode") == 8.0
        await first.kill()
        await cluster.lost(first)
        after = cluster.metrics()
        assert first.worker_id in before and first.worker_id not in after  # nor the other's link to it
        assert value(after, "worker_up", worker="decode-1", role="decode") == 1.0
        assert value(after, "kv_transfer_bytes_total", transport="shm") == 111.0
        assert value(after, "step_seconds_count", role="decode") == 5.0
        assert value(after, "queue_depth", role="decode") == 4.0

    harness.run(1, 2, walk)


def test_a_workers_bad_series_do_not_spoil_the_page(harness: Any) -> None:
    """Names that are not names, labels that are none, buckets that do not fit, names of ours: not shown."""

    async def walk(cluster: Any) -> None:
        bad = worker_pb2.WorkerStatus()
        bad.samples.add(name="no name", value=1)
        bad.samples.add(name="fine", labels={"no label": "x"}, value=1)
        bad.samples.add(name="requests_total", value=5)
        bad.samples.add(name="worker_up", labels={"worker": "decode-9"}, value=5)
        bad.samples.add(name="good_total", labels={"text": 'quote " and \n newline'}, value=2)
        bad.histograms.add(name="short", upper_bounds=[1.0], counts=[1], sum=1)
        bad.histograms.add(name="kv_transfer_seconds", upper_bounds=[1.0], counts=[1, 1], sum=1)
        await reported(cluster, cluster.decode, bad)
        text = cluster.metrics()
        assert value(text, "good_total", text='quote " and \n newline') == 2.0
        assert "no name" not in text and "decode-9" not in text and "pdserve_short" not in text
        assert value(text, "kv_transfer_seconds_count") == 0.0

    harness.run(0, 1, walk)


@pytest.mark.parametrize(("num_tenants", "shown"), [(2, {"default", "t0"}), (200, {"default"})])
def test_verdicts_begin_at_zero(harness: Any, num_tenants: int, shown: set[str]) -> None:
    """Or the rate of a first burst of misses would be 0; not of every tenant where they are many."""
    tenants = frozenset({"default", *(f"t{n}" for n in range(num_tenants - 1))})

    async def walk(cluster: Any) -> None:
        found = {labels: at for (name, labels), at in series(cluster.metrics()).items() if "slo_requests" in name}
        kinds = {("met", "none"), *(("missed", blame.value) for blame in Blame)}
        assert set(found) == {
            frozenset({"verdict": word, "blame": blame, "slo_class": one, "tenant": tenant}.items())
            for word, blame in kinds
            for one in ("default", "gold")
            for tenant in shown
        }
        assert set(found.values()) == {0.0}

    harness.run(0, 1, walk, CoreConfig(slos=(Slo(), Slo("gold", 30.0)), tenants=tenants))


def worker_with(**changes: Any) -> Worker:
    identity = WorkerIdentity("decode-0", b"b" * 16, Role.DECODE, "cpu", 1, "x", b"l" * 32, 100, 16, 64, 8, 512, 99, 9)
    worker = Worker(identity, session=None, now_s=0.0)  # type: ignore[arg-type]
    values: dict[str, Any] = {
        "blocks": BlockCounts(free=20, cached=5), "queued_sequences": 2, "running_sequences": 3,
        "uncomputed_tokens": 0, "promised_blocks": 0, "latency": LatencyCoefficients(), "samples": (), "histograms": (),
    }  # fmt: skip
    worker.note_status(StatusReport(**values | changes), 1.0)
    return worker


def test_the_line_in_the_log_says_only_news() -> None:
    """Tokens per second since the last line; once more after the last request, then silence."""
    line = StatsLine()
    assert line.next(0, 0, 10.0, []) is None
    text = line.next(2, 50, 10.0, [worker_with()])
    assert text == "running 2, 5.0 tokens/s, decode-0 KV 75 % running 3 waiting 2"
    assert line.next(0, 50, 10.0, []) == "running 0, 0.0 tokens/s"
    assert line.next(0, 50, 10.0, []) is None


def test_a_loop_that_stood_still_is_seen(harness: Any) -> None:
    """The lag is that of the housekeeping timer: sampled with every tick, late by what held the loop."""

    async def walk(cluster: Any) -> None:
        metrics, ticks = cluster.core.metrics, asyncio.Queue[float]()
        keep = metrics.loop_was_late

        def note(lag_s: float) -> None:
            keep(lag_s)
            ticks.put_nowait(lag_s)

        metrics.loop_was_late = note
        await ticks.get()
        before = value(cluster.metrics(), "event_loop_lag_seconds_sum")
        hold_the_loop(0.3)
        lag_s = await ticks.get()
        assert lag_s >= 0.2 and value(cluster.metrics(), "event_loop_lag_seconds_sum") >= before + lag_s

    harness.run(0, 1, walk, CoreConfig(tick_s=0.05))


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


def test_gaps_between_tokens_fall_into_their_buckets() -> None:
    """As prometheus_client counts: a bound belongs to its bucket, buckets are cumulative."""
    gaps = GapHistogram("pdserve_gap_seconds", "Gaps.", (0.1, 1.0))
    gaps.observe(0.1)
    gaps.observe(0.0, 3)
    gaps.observe(0.5)
    gaps.observe(7.0)
    (family,) = gaps.collect()
    assert [(s.name, s.labels.get("le"), s.value) for s in family.samples if s.name.endswith("_bucket")] == [
        ("pdserve_gap_seconds_bucket", "0.1", 4),
        ("pdserve_gap_seconds_bucket", "1.0", 5),
        ("pdserve_gap_seconds_bucket", "+Inf", 6),
    ]
    assert {s.name: s.value for s in family.samples if not s.labels} == {
        "pdserve_gap_seconds_count": 6,
        "pdserve_gap_seconds_sum": 7.6,
    }
