"""The placement group, and one actor beside each worker. Needs a connected Ray, given as the module it is."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from deploy.local.child_process import one_line
from deploy.local.cluster import first_error
from deploy.ray_cluster.placement import (
    Bundle,
    KeeperStart,
    bundle_of,
    listen_hosts,
    missing,
    placed,
    workers_per_gpu,
)
from deploy.ray_cluster.worker_host import WorkerHost
from deploy.words import counted
from pdserve.config import WorkerStart
from pdserve.exit import ExitCode, StartError

log = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_S = 30.0
RAY_CALL_MARGIN_S = 2.0  # for a call's way there and back


class Actors:
    """Every worker's actor: `start`, `watch_until`, then always `stop`."""

    def __init__(self, workers: Sequence[WorkerStart], handles: Sequence[Any], ray: Any, group: Any) -> None:
        self._workers, self._handles = workers, handles
        self._ray, self._group = ray, group
        self._pids: dict[str, int] = {}

    async def start(self) -> list[dict[str, Any]]:
        """Every worker's ready message, in order; raises StartError with the first error."""

        async def one(worker: WorkerStart, handle: Any) -> dict[str, Any]:
            try:
                said: dict[str, Any] = json.loads(await handle.start.remote(worker.to_json()))
            except Exception as error:  # of Ray: the actor died, its node is gone, our packages are not there
                raise StartError(f"{worker.worker_id}: {one_line(error)[:500]}", ExitCode.ENVIRONMENT) from None
            if said["ready"] is not True:
                raise StartError(said["error"], ExitCode(said["exit_code"]))
            self._pids[worker.worker_id] = said["pid"]
            return said

        try:
            async with asyncio.TaskGroup() as tasks:
                pairs = zip(self._workers, self._handles, strict=True)
                starting = [tasks.create_task(one(*pair)) for pair in pairs]
        except* StartError as group:
            raise first_error(group) from None
        return [task.result() for task in starting]

    async def watch_until(self, stopping: asyncio.Task[Any]) -> None:
        """Report every worker that ends before `stopping` does."""

        async def one(worker: WorkerStart, handle: Any) -> None:
            try:
                how = await handle.gone.remote()
            except Exception as error:  # of Ray: the actor or its node died, and the worker with it
                how = one_line(error)[:300]
            log.error("%s (pid %d) is gone: %s", worker.worker_id, self._pids[worker.worker_id], how)

        watching = [asyncio.create_task(one(*pair)) for pair in zip(self._workers, self._handles, strict=True)]
        await stopping
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)

    async def stop(self, grace_s: float) -> None:
        """End every worker, its actor and the placement group; safe to repeat."""
        calls = [handle.stop.remote(grace_s) for handle in self._handles]

        async def one(call: Any) -> None:
            try:
                await asyncio.wait_for(call, grace_s + RAY_CALL_MARGIN_S)
            except Exception as error:  # the actor is dead already, or hangs: it is killed now
                log.debug("actor does not stop: %s", error)

        await asyncio.gather(*map(one, calls))
        for handle in self._handles:
            self._ray.kill(handle, no_restart=True)
        self._ray.util.remove_placement_group(self._group)


def place(ray: Any, start: KeeperStart) -> Actors:
    """Find room for every worker and create their actors; raises StartError. Blocks: call it in a thread."""
    cluster = ray.cluster_resources()
    gpus = cluster.get("GPU", 0.0)
    bundle = bundle_of(start, gpus)
    per_gpu = workers_per_gpu(len(start.workers), gpus)
    group = _reserve(ray, start, bundle)
    try:
        ips = _node_ips(ray, group, len(start.workers))
        hosts = listen_hosts(ips, ray.util.get_node_ip_address())
        if "127.0.0.1" not in hosts and not start.insecure_bind:
            raise StartError(
                f"Ray placed workers on {', '.join(sorted(set(ips)))}; listening beyond one machine must be allowed by "
                "--insecure-bind",
                ExitCode.CONFIG,
            )
        workers = [placed(worker, host, per_gpu) for worker, host in zip(start.workers, hosts, strict=True)]
        return Actors(workers, _actors(ray, group, bundle, workers), ray, group)
    except BaseException:
        ray.util.remove_placement_group(group)
        raise


def _reserve(ray: Any, start: KeeperStart, bundle: Bundle) -> Any:
    """A placement group with a bundle for each worker, in place."""
    num_workers = len(start.workers)
    lack = missing(bundle, num_workers, ray.cluster_resources(), ray.available_resources())
    if lack is not None:
        raise StartError(lack, ExitCode.ENVIRONMENT)
    group = ray.util.placement_group([bundle.resources()] * num_workers, strategy=start.strategy.upper())
    if group.wait(PLACEMENT_TIMEOUT_S):
        return group
    free = ray.available_resources()
    ray.util.remove_placement_group(group)
    needs = " and ".join(counted(amount, name) for name, amount in bundle.resources().items())
    has = " and ".join(counted(free.get(name, 0.0), name) for name in bundle.resources())
    raise StartError(
        f"{num_workers} workers, each with {needs}, placed {start.strategy}, found no room within "
        f"{PLACEMENT_TIMEOUT_S:g} s; free in the cluster: {has}",
        ExitCode.ENVIRONMENT,
    )


def _node_ips(ray: Any, group: Any, num_workers: int) -> list[str]:
    """The address of the node of each bundle."""
    ip_of = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in ray.nodes()}
    node_of = ray.util.placement_group_table(group)["bundles_to_node_id"]
    return [ip_of[node_of[index]] for index in range(num_workers)]


def _actors(ray: Any, group: Any, bundle: Bundle, workers: Sequence[WorkerStart]) -> list[Any]:
    """One for each worker, in its bundle; what dies stays dead, the router serves on without it."""
    host = ray.remote(WorkerHost)
    return [
        host.options(
            num_cpus=bundle.cpus,
            num_gpus=bundle.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, index),
        ).remote()
        for index in range(len(workers))
    ]
