"""A worker as a process of its own.

The launcher writes one line of JSON (a WorkerStart) on standard input and keeps it open: its end means that the
launcher is gone, and the worker goes too. When it is warm, or cannot be, the worker prints one line of JSON on standard
output. Everything else goes to standard error. SIGINT is ignored (the launcher decides), SIGTERM drains and stops.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kv_transfer.notices import Identity, Notice
from kv_transfer.selection import make_transports
from kv_transfer.source import HandoffSource
from kv_transfer.target import HandoffTarget
from pdserve.clock import MonotonicClock
from pdserve.config import WorkerStart
from pdserve.exit import ExitCode, StartError
from pdserve.ids import PROTOCOL_VERSION, host_id, new_boot_id
from pdserve.settings import ConfigError, split_address
from pdserve.v1 import worker_pb2 as pb
from worker.assembly import BuiltEngine
from worker.build import build_engine
from worker.constraints import ConstraintDesk
from worker.metrics_port import MetricsPort, StatusCollector
from worker.peers import PeerConnector
from worker.policy import RolePolicy
from worker.runtime import Worker
from worker.service import WorkerService, serve

log = logging.getLogger(__name__)

DRAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that answers."""

    worker_id: str
    boot_id: bytes
    address: str
    pid: int


async def run_worker(
    policy: RolePolicy,
    start: WorkerStart,
    built: BuiltEngine,
    stop: asyncio.Event,
    on_ready: Callable[[Ready], None],
) -> None:
    """Serve until `stop` is set, then drain and end. Raises what killed the engine, OSError when it cannot listen."""
    config = start.config
    boot_id = new_boot_id()
    gpu = built.gpu
    identity = Identity(
        start.worker_id, boot_id, built.layout.fingerprint(), built.layout.block_bytes, host_id(),
        gpu_uuid=gpu.gpu_uuid if gpu is not None else "", nccl=gpu.nccl if gpu is not None else None,
    )  # fmt: skip
    notices: asyncio.Queue[Notice] = asyncio.Queue()
    host, port = split_address(start.listen)
    transports = make_transports(config.kv_transport, host, gpu)
    connect = PeerConnector(start.cluster_secret)
    source = HandoffSource(identity, built.memory, transports, connect, notices)
    target = HandoffTarget(identity, built.memory, transports, notices, gpu.reaches if gpu is not None else _nowhere)
    worker = Worker(policy, built.core, source, target, notices, MonotonicClock(), ConstraintDesk(built.grammars))
    hello = _hello(policy, start, built, identity, list(transports))
    service = WorkerService(worker, target, hello, start.cluster_secret)
    server, port = await serve(service, host, port)
    metrics = _metrics_port(start, host, policy.role, worker)
    if metrics is not None:
        hello.metrics_port = metrics.port
    worker.start()
    on_ready(Ready(start.worker_id, boot_id, f"{host}:{port}", os.getpid()))
    stopping = asyncio.create_task(stop.wait())
    try:
        waits: set[asyncio.Future[Any]] = {stopping, worker.died}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not worker.died.done():
            await _drain(worker)
    finally:
        stopping.cancel()
        await worker.stop()
        await server.stop(0.5)
        if metrics is not None:
            await asyncio.to_thread(metrics.close)
    if worker.died.done():
        raise worker.died.result()


def _nowhere(gpu_uuid: str) -> bool:
    """What the GPU of a worker without one reaches."""
    return False


def _metrics_port(start: WorkerStart, host: str, role: str, worker: Worker) -> MetricsPort | None:
    """The worker's own /metrics, if it is to have them."""
    if start.config.worker_metrics_port is None:
        return None
    collector = StatusCollector(start.worker_id, role, lambda: worker.status)
    return MetricsPort(host, start.config.worker_metrics_port, collector)


async def _drain(worker: Worker) -> None:
    """Let what runs end, DRAIN_S at most; the router sends nothing new."""
    try:
        async with asyncio.timeout(DRAIN_S):
            await worker.idle()
    except TimeoutError:
        log.warning("%d sequences cancelled after %g s of draining", worker.num_sequences, DRAIN_S)


def _hello(
    policy: RolePolicy, start: WorkerStart, built: BuiltEngine, identity: Identity, transports: list[str]
) -> pb.WorkerHello:
    config = start.config
    return pb.WorkerHello(
        worker_id=start.worker_id, boot_id=identity.boot_id, role=policy.role, device=start.device, pid=os.getpid(),
        protocol_version=PROTOCOL_VERSION, layout_fingerprint=identity.fingerprint,
        num_blocks=built.memory.num_blocks, block_size=built.layout.block_size, block_bytes=built.layout.block_bytes,
        max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=built.max_model_len, vocab_size=built.vocab_size, transports=transports,
        prefix_caching=config.enable_prefix_caching,
    )  # fmt: skip


def main(policy: RolePolicy, log_level: str) -> int:
    """Read the start line, serve, return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    logging.basicConfig(level=log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        start = WorkerStart.from_json(sys.stdin.buffer.readline().decode())
        _keep_to(start.processors)
        built = build_engine(start, MonotonicClock())
        # What is loaded stays: a full collection would look at its 350,000 objects, for 150 ms in the midst of a step.
        gc.collect()
        gc.freeze()
        asyncio.run(_serve(policy, start, built, lambda ready: _say_ready(answer.write, ready)))
    except (ConfigError, StartError, ValueError, OSError) as error:
        code = error.exit_code if isinstance(error, StartError) else _exit_code(error)
        _say(answer.write, {"ready": False, "error": str(error), "exit_code": int(code)})
        return int(code)
    except Exception as error:
        log.exception("worker died")
        _say(answer.write, {"ready": False, "error": f"{type(error).__name__}: {error}", "exit_code": 1})
        return int(ExitCode.FAILED)
    return 0


def _keep_to(processors: tuple[int, ...]) -> None:
    """Run on these only, if any are given: the threads that imports made, and by inheritance all later ones."""
    for task in os.listdir("/proc/self/task") if processors else ():
        try:
            os.sched_setaffinity(int(task), processors)
        except ProcessLookupError:
            pass  # it has ended


def _exit_code(error: Exception) -> ExitCode:
    if isinstance(error, ConfigError):
        return ExitCode.CONFIG
    return ExitCode.ENVIRONMENT if isinstance(error, OSError) else ExitCode.MODEL


def _say(write: Callable[[str], object], message: dict[str, object]) -> None:
    try:
        write(json.dumps(message) + "\n")
    except OSError:
        pass  # the launcher is gone


def _say_ready(write: Callable[[str], object], ready: Ready) -> None:
    boot_id = ready.boot_id.hex()
    answer = {
        "ready": True,
        "address": ready.address,
        "worker_id": ready.worker_id,
        "boot_id": boot_id,
        "pid": ready.pid,
    }
    _say(write, answer)


async def _serve(policy: RolePolicy, start: WorkerStart, built: BuiltEngine, on_ready: Callable[[Ready], None]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    threading.Thread(target=_watch_launcher, args=(loop, stop), daemon=True, name="launcher-watch").start()
    await run_worker(policy, start, built, stop, on_ready)


def _watch_launcher(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Standard input ends when the launcher does."""
    while os.read(0, 4096):
        pass
    try:
        loop.call_soon_threadsafe(stop.set)
    except RuntimeError:
        pass  # the loop has ended already
