"""Each delay, done to real workers, is the one that is blamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from kv_transfer.transports.interface import BlockMove, PairInfo, Receipt, Rendezvous
from kv_transfer.transports.shared_memory import SharedMemoryTransport
from pdserve.errors import NoWorker
from pdserve.kv_memory import KvMemory
from pdserve.slo import Blame, Slo
from router.record import Outcome, RequestRecord

Observe = Callable[..., AbstractAsyncContextManager[Any]]


def blame_of(record: RequestRecord) -> Blame:
    assert record.verdict is not None, record
    return record.verdict.blame


def test_a_long_queue(observe: Observe) -> None:
    """Sixteen prompts at once, with a TTFT that holds for the first few."""

    async def main() -> None:
        async with observe() as cluster:
            await cluster.measured()
            running = [cluster.submit(256, 2, Slo(ttft_s=0.06)) for _ in range(16)]
            last = [await cluster.end_of(one) for one in running][-6:]  # ten prompts of 17 ms before them
            assert {blame_of(one) for one in last} == {Blame.QUEUE}
            assert last[-1].predicted.queue_s is not None and last[-1].predicted.queue_s > 0.1

    asyncio.run(main())


def test_a_slow_prefill(observe: Observe) -> None:
    """The worker computes prompts thirty times slower than it told the router."""

    async def main() -> None:
        async with observe() as cluster:
            await cluster.measured()
            cluster.slow_down("prefill-0", per_prefill_token_s=1.5e-3)
            record = await cluster.run(128, 2, Slo(ttft_s=0.1))
            assert blame_of(record) is Blame.PREFILL
            assert record.predicted.prefill_s is not None
            assert record.timing.prefill_s > 0.15 > 5 * record.predicted.prefill_s

    asyncio.run(main())


def test_a_deadline_in_the_midst_of_a_prompt(observe: Observe) -> None:
    """Its first step had been taken, so it no longer waited: prefill, not queue."""

    async def main() -> None:
        async with observe() as cluster:
            await cluster.measured()
            cluster.slow_down("prefill-0", base_s=0.08)
            record = await cluster.run(512, 2, deadline_s=0.4)
            assert (record.outcome, blame_of(record)) == (Outcome.DEADLINE, Blame.PREFILL)
            assert record.first_token_s is None and record.prefill_started_s is not None
            assert record.timing.prefill_s > 5 * record.timing.queue_s

    asyncio.run(main())


def test_slow_decode_steps(observe: Observe) -> None:
    """Steps of 40 ms where 1 ms was predicted."""

    async def main() -> None:
        async with observe() as cluster:
            await cluster.measured()
            cluster.slow_down("decode-0", base_s=0.04)
            record = await cluster.run(64, 8, Slo(tpot_s=0.02))
            assert blame_of(record) is Blame.DECODE
            assert record.predicted.decode_step_s is not None and record.predicted.decode_step_s < 0.02

    asyncio.run(main())


def test_waiting_for_room_on_the_decode_worker(observe: Observe) -> None:
    """One sequence at a time there; the KV of the second waits on its prefill worker."""

    async def main() -> None:
        async with observe(decode_changes={"max_num_seqs": 1}) as cluster:
            await cluster.measured()
            first = cluster.submit(64, 200)
            await asyncio.sleep(0.05)
            record = await cluster.run(64, 4, Slo(tpot_s=0.02))
            assert blame_of(record) is Blame.DECODE_WAIT
            assert record.reserved_s is not None and record.first_token_s is not None
            assert record.reserved_s > record.first_token_s + 0.05
            assert record.timing.decode_wait_s > 5 * record.timing.transfer_s
            assert (await cluster.end_of(first)).outcome is Outcome.FINISHED

    asyncio.run(main())


class SlowTarget:
    """A target's end whose bytes are in place long before it says so."""

    def __init__(self, channel: Any, delay_s: float) -> None:
        self._channel, self._delay_s = channel, delay_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def post(self, transfer_id: int, moves: Sequence[BlockMove], *more: Any, **named: Any) -> Receipt:
        loop = asyncio.get_running_loop()
        inner, late = self._channel.post(transfer_id, moves, *more, **named), Receipt(loop)
        inner.when_settled(lambda: loop.call_later(self._delay_s, late.settle, None))
        return late


def test_a_slow_link(observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of blocks arrives 0.2 s late."""
    opened = SharedMemoryTransport.open_target

    async def open_target(self: SharedMemoryTransport, pair: PairInfo, meet: Rendezvous, memory: KvMemory) -> Any:
        return SlowTarget(await opened(self, pair, meet, memory), 0.2)

    monkeypatch.setattr(SharedMemoryTransport, "open_target", open_target)

    async def main() -> None:
        async with observe() as cluster:
            await cluster.measured()
            record = await cluster.run(64, 4, Slo(tpot_s=0.02))
            assert blame_of(record) is Blame.TRANSFER
            assert record.timing.transfer_s > 0.15
            assert record.transfer is not None and record.transfer.transport == "shm" and record.transfer.num_bytes > 0

    asyncio.run(main())


def test_without_a_decode_worker_the_loss_is_blamed(observe: Observe) -> None:
    """Running then, or refused later."""

    async def main() -> None:
        async with observe() as cluster:
            await cluster.measured()
            running = cluster.submit(64, 200, Slo(ttft_s=10.0))
            await asyncio.sleep(0.1)
            for worker in cluster.core.fleet:
                worker.session.fail("killed by the test")
            lost = await cluster.end_of(running)
            assert (lost.outcome, blame_of(lost)) == (Outcome.FAILED, Blame.WORKER_LOSS)
            with pytest.raises(NoWorker):
                cluster.submit(64, 2)
            refused = cluster.records[f"r{cluster._count}"]
            assert (refused.outcome, blame_of(refused)) == (Outcome.REJECTED, Blame.WORKER_LOSS)

    asyncio.run(main())
