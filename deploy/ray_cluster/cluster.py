"""All workers of a cluster through Ray, as the launcher of `pdserve serve` sees them.

Ray itself runs in the keeper, a child process: this one never loads it (docs/adr/0020-ray-carries-life-only.md).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shutil
import sys
import tempfile

from deploy.local.child_process import ChildProcess, describe_exit
from deploy.local.cluster import RunningWorker
from deploy.local.worker_process import Ready
from deploy.ray_cluster.placement import LOCAL, KeeperStart
from deploy.resolve import ResolvedServe
from pdserve.exit import ExitCode, StartError

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 1 << 22  # who is where, of 2,048 workers
RAY_STOP_S = 6.0  # for Ray itself to go, after the workers
UNREADY_STOP_S = 2.0  # for a Ray that still starts: it may be deaf in native code, and nobody is served yet


def check_ray_installed() -> None:
    """StartError when it is not; found without loading it."""
    if importlib.util.find_spec("ray") is None:
        raise StartError("--ray: Ray is not installed; pip install 'pdserve[ray]'", ExitCode.ENVIRONMENT)


class RayCluster:
    """`start`, `watch` while it serves, `stop`: all on one event loop."""

    def __init__(self, resolved: ResolvedServe, secret: str) -> None:
        self._resolved = resolved
        self._starts = resolved.starts(secret)
        self._temp_dir: str | None = None
        self._keeper: ChildProcess | None = None
        self._ready = False
        self._stopping = False

    async def start(self, timeout_s: float) -> list[RunningWorker]:
        """Every worker, warm; raises StartError when one cannot serve, Ray cannot be reached or has no room."""
        if self._resolved.config.ray == LOCAL:
            self._temp_dir = tempfile.mkdtemp(prefix="pdray-", dir="/tmp")  # Ray's socket paths stay below 108 bytes
        command = [sys.executable, "-P", "-m", "deploy.ray_cluster.keeper"]
        self._keeper = await ChildProcess.spawn("ray", command, self._line().to_json(), MAX_ANSWER_BYTES)
        log.info("starting %s through Ray (%s)", ", ".join(one.worker_id for one in self._starts), self._line().address)
        try:
            async with asyncio.timeout(timeout_s):
                said = await self._keeper.answer()
        except TimeoutError:
            raise StartError(f"Ray and its workers not ready within {timeout_s:g} s (--start-timeout-s)") from None
        self._ready = True
        ready = {one.worker_id: one for one in (Ready.parse(worker) for worker in said["workers"])}
        for start in self._starts:
            one = ready[start.worker_id]
            log.info("%s is ready: pid %d, %s", one.worker_id, one.pid, one.address)
        return [RunningWorker(start, ready[start.worker_id]) for start in self._starts]

    def _line(self) -> KeeperStart:
        config = self._resolved.config
        assert config.ray is not None
        return KeeperStart(
            config.ray, self._temp_dir or "", config.ray_strategy, config.ray_cpus, config.router.insecure_bind,
            tuple(self._starts),
        )  # fmt: skip

    async def watch(self) -> None:
        """Report Ray's end while the cluster serves (the keeper reports every worker's); returns when it has ended."""
        assert self._keeper is not None
        status = await self._keeper.wait()
        if not self._stopping:
            log.error(
                "Ray's keeper (pid %d) is gone: %s; the workers go with it", self._keeper.pid, describe_exit(status)
            )

    async def stop(self, grace_s: float) -> None:
        """End every worker, then the Ray that is ours; returns when none is left. Safe to repeat."""
        self._stopping = True
        if self._keeper is not None:
            await self._keeper.stop(grace_s + RAY_STOP_S if self._ready else UNREADY_STOP_S)
        if self._temp_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._temp_dir, ignore_errors=True)
