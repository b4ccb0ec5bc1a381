"""What workers ask of Ray, without Ray: tests/e2e/test_ray.py starts one."""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.ray_cluster.cluster import RayCluster
from deploy.ray_cluster.placement import (
    Bundle,
    KeeperStart,
    bundle_of,
    listen_hosts,
    missing,
    placed,
    workers_per_gpu,
)
from deploy.resolve import resolve
from pdserve.config import ServeConfig, WorkerConfig, WorkerStart
from pdserve.exit import ExitCode, StartError


def keeper(device: str, num_workers: int, threads: int | None = None, cpus: float | None = None) -> KeeperStart:
    one = WorkerStart("prefill-0", "prefill", "", device, "s", "127.0.0.1:0", WorkerConfig(threads=threads))
    return KeeperStart("local", "", "pack", cpus, False, (one,) * num_workers)


def test_what_a_worker_reserves() -> None:
    """Its threads or what --ray-cpus says; of a GPU all, or an equal share where workers outnumber them."""
    assert bundle_of(keeper("cpu", 3, threads=4), 0.0) == Bundle(4, 0.0)
    assert bundle_of(keeper("cpu", 3, threads=4, cpus=0.5), 0.0) == Bundle(0.5, 0.0)
    assert bundle_of(keeper("cuda:0", 2, threads=4), 2.0) == Bundle(1, 1.0)
    assert bundle_of(keeper("cuda:0", 5, threads=4), 2.0) == Bundle(1, 1 / 3)
    assert workers_per_gpu(4, 0.0) == 1, "there is none to share: it is missing"


def test_what_is_missing_is_named() -> None:
    """Only what the cluster could not give if it were idle."""
    cluster, free = {"CPU": 4.0}, {"CPU": 3.0}
    assert missing(Bundle(2, 0.0), 2, cluster, free) is None
    assert missing(Bundle(1, 0.0), 7, cluster, free) == "7 workers need 7 CPUs, the cluster has 4 (3 free)"
    assert missing(Bundle(1, 1.0), 1, {}, {}) == (
        "1 worker needs 1 CPU, the cluster has 0 (0 free); 1 GPU, the cluster has 0 (0 free)"
    )
    assert missing(Bundle(1, 1 / 3), 3, {"CPU": 3.0, "GPU": 0.9999}, {}) is None, "Ray rounds"


def test_where_workers_listen() -> None:
    """On loopback while all are on this machine; a shared GPU is divided."""
    assert listen_hosts(["10.0.0.1", "10.0.0.1"], "10.0.0.1") == ["127.0.0.1", "127.0.0.1"]
    assert listen_hosts(["10.0.0.1", "10.0.0.2"], "10.0.0.1") == ["10.0.0.1", "10.0.0.2"]
    (worker,) = keeper("cuda:0", 1).workers
    assert placed(worker, "::1", 1).listen == "[::1]:0" and not placed(worker, "::1", 1).shares_gpu
    shared = placed(worker, "10.0.0.2", 2)
    assert shared.shares_gpu and shared.listen == "10.0.0.2:0"
    assert shared.config.gpu_memory_utilization == worker.config.gpu_memory_utilization / 2


def test_a_ray_that_is_not_there_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line with the address; and no directory, which only a Ray of our own needs."""

    def refuse(**asked: str) -> str:
        raise AssertionError(f"a directory was made: {asked}")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"base_s": 0.01, "per_prefill_token_s": 0, "per_decode_sequence_s": 0, "per_context_token_s": 0}'
    )
    config = ServeConfig(ray=free, worker=replace(WorkerConfig(), mock=str(profile)))

    async def start() -> None:
        cluster = RayCluster(resolve(config), secrets.token_urlsafe())
        try:
            await cluster.start(30.0)
        finally:
            await cluster.stop(1.0)

    with pytest.raises(StartError, match=f"--ray is {free}; no Ray there: Connection refused") as caught:
        asyncio.run(start())
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
