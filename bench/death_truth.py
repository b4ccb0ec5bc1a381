"""Does a death do in the simulator what it does to a cluster? kill -9 of one of 2+2 mock workers, and that simulated.

    python -m bench.death_truth [--requests N] [--at S] [WORKER ...]

The mock engine's steps take what the simulator takes them to (engine/mock.py), so what differs is the router, the
workers and the handoffs. Messages and the front door are assumed: 2 ms each. Which requests are on a worker when it
dies is chance; how many, and what becomes of the others, should agree. Half a minute for each worker.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np

from bench.idle_cpu import wait_ready
from pdserve.v1 import inference_pb2, inference_pb2_grpc
from placement.simulator.cluster import ClusterSpec, Delays, LinearSteps, LinkSpec, WorkerDown, WorkerSpec
from placement.simulator.requests import Outcome, SimRequest
from placement.simulator.simulate import simulate
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import Role

STEPS = LatencyCoefficients(0.02, 4e-4, 2e-4, 0.0)  # slow enough for two cores to keep up with five processes
RATE = 6.0
CONTEXT, CHUNK, BLOCK, BLOCKS = 1024, 1024, 8, 8192
LATE_S = 60.0
DELAYS = Delays(front_s=2e-3, message_s=2e-3, step_s=1e-3, wake_s=1e-3)
Times = tuple[float, float]
"""TTFT and TPOT, seconds; nan of a request that failed."""


def drawn(num: int) -> list[SimRequest]:
    rng = np.random.default_rng(3)
    at_s, prompts, outputs = (
        np.cumsum(rng.exponential(1 / RATE, num)),
        rng.integers(200, 600, num),
        rng.integers(40, 160, num),
    )
    return [SimRequest(float(a), int(p), int(o)) for a, p, o in zip(at_s, prompts, outputs, strict=True)]


def simulated(requests: Sequence[SimRequest], worker: str, at_s: float) -> tuple[list[Times], Counter[str]]:
    config = SchedulerConfig(max_model_len=CONTEXT, max_num_seqs=256, max_num_batched_tokens=CHUNK)
    workers = tuple(
        WorkerSpec(f"{role.value}-{i}", role, config, BLOCKS, BLOCK, LinearSteps(LatencyModel(STEPS)), False)
        for role in (Role.PREFILL, Role.DECODE)
        for i in range(2)
    )
    result = simulate(ClusterSpec(workers, 1, LinkSpec(1e9, 5e-3), DELAYS), requests, [WorkerDown(at_s, worker)])
    rows = result.requests
    assert (rows.outcome != Outcome.UNFINISHED).all()
    return list(zip(rows.ttft_s.tolist(), rows.tpot_s.tolist(), strict=True)), Counter(result.errors)


def served(requests: Sequence[SimRequest], worker: str, at_s: float) -> tuple[list[Times], Counter[str]]:
    with tempfile.TemporaryDirectory() as directory:
        profile, ready = Path(directory) / "profile.json", Path(directory) / "ready.json"
        profile.write_text(json.dumps(asdict(STEPS)))
        flags = {
            "mock": profile, "prefill": 2, "decode": 2, "ready-file": ready, "grpc": "127.0.0.1:0",
            "http": "127.0.0.1:0", "max-model-len": CONTEXT, "block-size": BLOCK,
            "max-num-batched-tokens": CHUNK, "kv-bytes": "64M",
        }  # fmt: skip
        command = [sys.executable, "-m", "deploy.cli", "serve", "--no-enable-prefix-caching"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            pid = wait_ready(server, ready)[worker]
            with grpc.insecure_channel(json.loads(ready.read_text())["grpc"]) as channel:
                return _asked(inference_pb2_grpc.InferenceServiceStub(channel), requests, pid, at_s)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(LATE_S)


def _asked(
    stub: inference_pb2_grpc.InferenceServiceStub, requests: Sequence[SimRequest], pid: int, at_s: float
) -> tuple[list[Times], Counter[str]]:
    errors: Counter[str] = Counter()
    begin_s = time.monotonic() + 1.0

    def ask(request: SimRequest) -> Times:
        ids = np.random.default_rng(request.prompt_tokens).integers(0, 500, request.prompt_tokens).tolist()
        message = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=ids), max_tokens=request.output_tokens, ignore_eos=True
        )
        time.sleep(max(0.0, begin_s + request.arrival_s - time.monotonic()))
        sent_s, came_s = time.monotonic(), []
        try:
            for answer in stub.Generate(message, timeout=LATE_S):
                came_s += [time.monotonic()] * len(answer.chunk.token_ids)
        except grpc.RpcError as error:
            errors[error.details()] += 1
            return math.nan, math.nan
        assert len(came_s) == request.output_tokens, f"{len(came_s)} tokens of {request.output_tokens}"
        return came_s[0] - sent_s, (came_s[-1] - came_s[0]) / (len(came_s) - 1)

    killer = threading.Timer(begin_s + at_s - time.monotonic(), os.kill, (pid, signal.SIGKILL))
    killer.start()
    with ThreadPoolExecutor(len(requests)) as threads:
        times = list(threads.map(ask, requests))
    killer.join()
    return times, errors


def show(name: str, requests: Sequence[SimRequest], at_s: float, times: list[Times], errors: Counter[str]) -> None:
    arrivals_s, both = np.array([request.arrival_s for request in requests]), np.array(times)
    for when, which in (("before", arrivals_s < at_s), ("after", arrivals_s >= at_s)):
        ttft, tpot = (np.nanpercentile(column, (50, 90)) for column in both[which].T)
        failed = int(np.isnan(both[which, 0]).sum())
        print(
            f"  {name:9} {when:6} {int(which.sum()):4} requests, {failed} failed; TTFT p50 {ttft[0]:.3f}, p90 "
            f"{ttft[1]:.3f} s; TPOT p50 {1e3 * tpot[0]:.1f}, p90 {1e3 * tpot[1]:.1f} ms"
        )
    print(f"  {name:9} {dict(errors)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--at", type=float, default=12.0)
    parser.add_argument("workers", nargs="*", default=["decode-0", "prefill-0"])
    args = parser.parse_args()
    requests = drawn(args.requests)
    for worker in args.workers:
        print(f"{worker} dies after {args.at:g} s")
        show("served", requests, args.at, *served(requests, worker, args.at))
        show("simulated", requests, args.at, *simulated(requests, worker, args.at))


if __name__ == "__main__":
    main()
