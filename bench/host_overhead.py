"""What a decode step costs a worker outside the model and the sampler: CPU time per step and per sequence.

    python -m bench.host_overhead [--seqs 1 8 32 128 256] [--context 512]

A real worker (scheduler, engine thread, event loop, gRPC service) with a runner that packs each step and computes
nothing; a router in another process submits the sequences and reads the tokens. Where the model would compute, the
engine thread reads 32 MB: like weights, they push everything else out of the caches, and the event loop does its part
meanwhile. Counted is the CPU time of the whole process, all threads, without that; the gate is 0.3 ms per step and
5 us per sequence, fitted over the batch sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import grpc.aio
import numpy as np
import torch

from bench.arguments import positive
from decode_worker.policy import DECODE
from engine.batch import StepPacker
from engine.core import EngineCore
from engine.mock import mock_layout
from pdserve.clock import MonotonicClock
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.ids import PROTOCOL_VERSION, SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.sampling import SampledToken, SamplingParams
from pdserve.v1 import worker_pb2 as pb
from pdserve.v1 import worker_pb2_grpc
from pdserve.wire import key_to_proto, sampling_to_proto
from scheduling.batching import Batch, Scheduler, SchedulerConfig, SequenceUpdate
from scheduling.blocks import BlockPool
from scheduling.step import SequenceStep, StepResult
from worker.assembly import BuiltEngine
from worker.process import Ready, run_worker

SECRET = "bench"
BLOCK_SIZE = 16
MODEL_BYTES = 32 << 20  # read in every step, about 2 ms
WARM_STEPS = 30
WINDOW_STEPS = 50
TOKEN = SampledToken(7)


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds since the start, or of a window, by who spent them."""

    process: float
    schedule: float
    pack: float
    complete: float
    engine: float  # the engine's thread, all of it
    loop: float  # the event loop's thread

    def __sub__(self, other: Costs) -> Costs:
        return Costs(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))

    def per(self, count: int) -> Costs:
        return Costs(*(getattr(self, name) / count for name in self.__slots__))


class Meter:
    """Adds up the phases; read at the start of a step."""

    def __init__(self) -> None:
        self.schedule_s = self.pack_s = self.complete_s = 0.0
        self.model_s = 0.0  # what stands for the model and the sampler, and this benchmark itself: not counted
        self._loop_clock = time.pthread_getcpuclockid(threading.main_thread().ident or 0)

    def read(self) -> Costs:
        """Called on the engine's thread."""
        return Costs(
            time.process_time() - self.model_s, self.schedule_s, self.pack_s, self.complete_s,
            time.thread_time() - self.model_s,
            time.clock_gettime(self._loop_clock),
        )  # fmt: skip


class TimedScheduler(Scheduler):
    """The scheduler, its two halves of a step timed."""

    def __init__(self, config: SchedulerConfig, blocks: BlockPool, meter: Meter) -> None:
        super().__init__(config, blocks, MonotonicClock())
        self._meter = meter

    def schedule(self) -> Batch:
        begin = time.thread_time()
        batch = super().schedule()
        self._meter.schedule_s += time.thread_time() - begin
        return batch

    def complete(self, batch: Batch, results: Seq[StepResult]) -> list[SequenceUpdate]:
        begin = time.thread_time()
        updates = super().complete(batch, results)
        self._meter.complete_s += time.thread_time() - begin
        return updates


class NothingRunner:
    """Packs, reads, and gives the same token to everyone; reads the meter every WINDOW_STEPS full decode steps."""

    def __init__(self, num_seqs: int, meter: Meter) -> None:
        self._num_seqs, self._meter = num_seqs, meter
        self._packer = StepPacker(BLOCK_SIZE, 1, torch.device("cpu"))
        self._weights = torch.ones(MODEL_BYTES // 4)
        self.windows: list[Costs] = []
        self._begin: Costs | None = None
        self._full_steps = 0

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        begin = time.thread_time()
        if len(steps) == self._num_seqs and all(step.start > 0 and len(step.token_ids) == 1 for step in steps):
            self._count()
        counted = time.thread_time()
        self._meter.model_s += counted - begin
        self._packer.pack(steps)
        packed = time.thread_time()
        self._meter.pack_s += packed - counted
        self._weights.sum()
        results: list[StepResult] = [None if step.sample is None else TOKEN for step in steps]
        self._meter.model_s += time.thread_time() - packed
        return results

    def _count(self) -> None:
        self._full_steps += 1
        if self._full_steps >= WARM_STEPS and (self._full_steps - WARM_STEPS) % WINDOW_STEPS == 0:
            now = self._meter.read()
            if self._begin is not None:
                self.windows.append((now - self._begin).per(WINDOW_STEPS))
            self._begin = now


async def measure(num_seqs: int, context: int, num_windows: int) -> Costs:
    """The cheapest window of a worker that decodes `num_seqs` sequences, per step."""
    max_tokens = WARM_STEPS + (num_windows + 1) * WINDOW_STEPS
    max_model_len = context + max_tokens + 1
    meter = Meter()
    runner = NothingRunner(num_seqs, meter)
    built = _build(num_seqs, max_model_len, meter, runner)
    start = WorkerStart("decode-0", "decode", "", "cpu", SECRET, "127.0.0.1:0", WorkerConfig())
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    worker = asyncio.create_task(run_worker(DECODE, start, built, stop, ready.set_result))
    answer: Ready = await ready
    router = [sys.executable, "-m", "bench.host_overhead", "--router", answer.address]
    numbers = [str(n) for n in (num_seqs, context, max_tokens)]
    process = await asyncio.create_subprocess_exec(*router, *numbers)
    status = await process.wait()
    stop.set()
    await worker
    if status:
        raise RuntimeError(f"the router of the benchmark ended with {status}")
    return min(runner.windows, key=lambda window: window.process)


def _build(num_seqs: int, max_model_len: int, meter: Meter, runner: NothingRunner) -> BuiltEngine:
    layout = mock_layout("nothing", BLOCK_SIZE, 8)
    memory = KvMemory(num_seqs * (-(-max_model_len // BLOCK_SIZE) + 1), layout.block_bytes)
    config = SchedulerConfig(
        max_model_len=max_model_len, max_num_seqs=num_seqs, max_num_batched_tokens=max(2048, num_seqs),
        max_queued_sequences=num_seqs,
    )  # fmt: skip
    blocks = BlockPool(memory.num_blocks, BLOCK_SIZE, generations=memory.generations)
    scheduler = TimedScheduler(config, blocks, meter)
    return BuiltEngine(EngineCore(scheduler, runner, MonotonicClock()), memory, layout, max_model_len, 1000)


async def act_as_router(address: str, num_seqs: int, context: int, max_tokens: int) -> None:
    """Submit, and read until nothing comes that is expected."""
    ended = asyncio.Event()

    async def outgoing() -> AsyncIterator[pb.RouterMessage]:
        yield pb.RouterMessage(hello=pb.SessionHello(router_boot_id=b"r" * 16, protocol_version=PROTOCOL_VERSION))
        sampling = sampling_to_proto(SamplingParams(max_tokens=max_tokens, eos_token_ids=(2,)))
        for index in range(num_seqs):
            key = key_to_proto(SequenceKey(f"request-{index:032}", index + 1))
            yield pb.RouterMessage(
                submit=pb.SubmitSequence(
                    key=key, mode=pb.SEQUENCE_MODE_FULL, prompt_token_ids=[index + 10] * context, sampling=sampling,
                    deadline_left_s=600.0,
                )
            )  # fmt: skip
        await ended.wait()

    async with grpc.aio.insecure_channel(address) as channel:
        session = worker_pb2_grpc.WorkerServiceStub(channel).Session
        finished = 0
        async for message in session(outgoing(), metadata=(("authorization", f"Bearer {SECRET}"),)):
            finished += sum(1 for output in message.step.outputs if output.finish_reason)
            if finished == num_seqs:
                ended.set()
                break


def show(rows: dict[int, Costs]) -> None:
    """The table, and the fit beside the gate."""
    print("us per step        schedule      pack  complete  engine rest  event loop     other     total  per sequence")
    for num_seqs, cost in rows.items():
        rest = cost.engine - cost.schedule - cost.pack - cost.complete
        other = cost.process - cost.engine - cost.loop
        parts = [1e6 * part for part in (cost.schedule, cost.pack, cost.complete, rest, cost.loop, other, cost.process)]
        columns = "{:10.1f}{:10.1f}{:10.1f}{:13.1f}{:12.1f}{:10.1f}{:10.1f}".format(*parts)
        print(f"{num_seqs:4} sequences   {columns}{1e6 * cost.process / num_seqs:14.2f}")
    if len(rows) > 1:
        seqs = np.array(list(rows), dtype=float)
        slope, base = np.polyfit(seqs, [1e6 * cost.process for cost in rows.values()], 1, w=1.0 / np.sqrt(seqs))
        print(f"fit: {base / 1e3:.3f} ms per step + {slope:.2f} us per sequence (gate 0.300 + 5.00, stretch half)")
    worst = max(1e6 * cost.process / (300.0 + 5.0 * num_seqs) for num_seqs, cost in rows.items())
    print(f"worst batch size: {100 * worst:.0f} % of the gate; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqs", type=positive, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--context", type=positive, default=512, help="prompt tokens of each sequence")
    parser.add_argument(
        "--windows", type=int, default=8, help=f"measurements of {WINDOW_STEPS} steps, the least counts"
    )
    parser.add_argument("--router", nargs=4, metavar=("ADDRESS", "SEQS", "CONTEXT", "TOKENS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.router:
        address, *numbers = args.router
        asyncio.run(act_as_router(address, *(int(number) for number in numbers)))
        return
    torch.set_num_threads(1)
    show({n: asyncio.run(measure(n, args.context, args.windows)) for n in args.seqs})


if __name__ == "__main__":
    main()
