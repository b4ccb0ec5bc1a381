"""Workers that die, fall silent, come back, lie about who they are, or were never there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pdserve.errors import (
    AlreadyExists,
    DeadlineExceeded,
    IncompatiblePeer,
    NoWorker,
    PeerLost,
    PromptTooLong,
    RequestError,
)
from pdserve.ids import PROTOCOL_VERSION, new_boot_id
from pdserve.sampling import FinishReason, SamplingParams
from pdserve.slo import Blame
from pdserve.v1 import worker_pb2
from router.core.config import CoreConfig, SessionConfig
from router.core.wire import event_from_proto

QUICK = CoreConfig(tick_s=0.05, session=SessionConfig(reconnect_min_s=0.02, reconnect_max_s=0.05))


def test_a_dead_decode_worker_ends_its_requests_and_no_others(harness: Any) -> None:
    """UNAVAILABLE within 2 s, P told to abort; what runs on the other D goes on; its series are gone."""

    async def walk(cluster: Any) -> None:
        prefill, *decodes = cluster.workers
        streams = {name: cluster.submit(name) for name in ("a", "b")}
        keys = {name: await prefill.told(name) for name in streams}
        for name, key in keys.items():
            prefill.tokens(key, 0, 11)
            await harness.read_tokens(streams[name], 1)
        victim = next(worker for worker in decodes if keys["a"] in worker.submits)
        other = next(worker for worker in decodes if worker is not victim)
        victim.tokens(keys["a"], 1, 12)
        await harness.read_tokens(streams["a"], 1)
        assert f'pdserve_worker_up{{role="decode",worker="{victim.worker_id}"}} 1.0' in cluster.metrics()
        killed_s = cluster.clock.now()
        await victim.kill()
        with pytest.raises(PeerLost, match=f"decode worker {victim.worker_id} was lost") as caught:
            await harness.read_all(streams["a"], 2)
        assert caught.value.verdict is not None and caught.value.verdict.blame is Blame.WORKER_LOSS
        assert cluster.clock.now() - killed_s < 2.0
        await prefill.aborted("a")
        assert victim.worker_id not in cluster.metrics()
        assert {view.id: view.up for view in cluster.core.workers()} == {
            "prefill-0": True, victim.worker_id: False, other.worker_id: True,
        }  # fmt: skip
        other.tokens(await other.told("b"), 1, 12, finish=FinishReason.STOP)
        assert (await harness.read_all(streams["b"], 1))[0] == [12]

    harness.run(1, 2, walk, QUICK)


def test_a_dead_prefill_worker_before_token_one(harness: Any) -> None:
    """UNAVAILABLE, D let go; the next request is served by D alone."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        await cluster.prefill.told("r")
        await cluster.decode.told("r")
        await cluster.prefill.kill()
        with pytest.raises(PeerLost, match="prefill worker prefill-0 was lost"):
            await harness.read_all(stream)
        await cluster.decode.aborted("r")
        cluster.submit("next")
        key = await cluster.decode.told("next")
        assert cluster.decode.submits[key].mode == worker_pb2.SEQUENCE_MODE_FULL
        assert cluster.core.is_ready()

    harness.run(1, 1, walk, QUICK)


def test_a_prefill_worker_that_dies_after_the_commit_is_not_missed(harness: Any) -> None:
    """D owns the KV."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.prefill.tokens(key, 0, 11)
        await harness.read_tokens(stream, 1)
        cluster.decode.handoff(key, "COMMITTED")
        await cluster.heard(cluster.decode)
        await cluster.prefill.kill()
        await cluster.lost(cluster.prefill)
        cluster.decode.tokens(key, 1, 12, finish=FinishReason.STOP)
        assert (await harness.read_all(stream, 1))[0] == [12]

    harness.run(1, 1, walk, QUICK)


@pytest.mark.parametrize("commits", [True, False])
def test_a_prefill_worker_that_dies_behind_token_one(harness: Any, commits: bool) -> None:
    """Every byte may have arrived: D's commit saves the request, silence ends it after a moment."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.prefill.tokens(key, 0, 11)
        await harness.read_tokens(stream, 1)
        await cluster.prefill.kill()
        await cluster.lost(cluster.prefill)
        if commits:
            cluster.decode.handoff(key, "COMMITTED")
            cluster.decode.tokens(key, 1, 12, finish=FinishReason.STOP)
            assert (await harness.read_all(stream, 1))[0] == [12]
        else:
            with pytest.raises(PeerLost, match="prefill-0"):
                await harness.read_all(stream, 1)
            await cluster.decode.aborted("r")

    harness.run(1, 1, walk, replace(QUICK, peer_grace_s=0.3 if not commits else 20.0))


def test_a_silent_worker_is_lost(harness: Any) -> None:
    """It holds its connection and says nothing: as good as dead, and back when it speaks again."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        await cluster.decode.told("r")
        with harness.log() as log:
            cluster.decode.mute = True
            with pytest.raises(PeerLost, match="decode worker decode-0 was lost"):
                await harness.read_all(stream)
            await log.until("silent for 0.")
        cluster.decode.mute = False
        await asyncio.wait_for(cluster.core.wait_ready(), 5.0)

    harness.run(0, 1, walk, replace(QUICK, silence_s=0.5))


def test_a_session_that_comes_back_aborts_what_was_left(harness: Any) -> None:
    """The same boot behind a broken connection may still hold the sequence."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        await cluster.decode.told("r")
        cluster.core.fleet.get("decode-0").session.fail("broken by the test")
        with pytest.raises(PeerLost):
            await harness.read_all(stream)
        await cluster.decode.aborted("r")
        assert cluster.decode.sessions == 2

    harness.run(0, 1, walk, QUICK)


def test_a_restarted_worker_is_another_one(harness: Any, caplog: pytest.LogCaptureFixture) -> None:
    """New boot id at the same address: old sequences are nothing to it, new ones are served."""

    async def walk(cluster: Any) -> None:
        worker = cluster.decode
        stream = cluster.submit()
        old_key = await worker.told("r")
        port = int(worker.address.rsplit(":", 1)[1])
        await worker.kill()
        with pytest.raises(PeerLost):
            await harness.read_all(stream)
        assert not cluster.core.is_ready()
        assert cluster.core.why_not_ready() == "no decode worker is up (decode-0 lost)"
        assert "(UNAVAILABLE, 503); a broken connection is made again, a worker that ended is not" in caplog.text
        with pytest.raises(NoWorker, match="no decode worker is up"):
            cluster.submit("meanwhile")
        worker.boot_id = new_boot_id()
        await worker.start(port)
        await asyncio.wait_for(cluster.core.wait_ready(), 5.0)
        assert cluster.core.fleet.get("decode-0").identity.boot_id == worker.boot_id
        again = cluster.submit()  # the same id: the old one is over
        key = await worker.told("r", after=old_key)
        worker.tokens(key, 0, 1, finish=FinishReason.STOP)
        assert (await harness.read_all(again))[0] == [1]
        assert old_key not in worker.aborts

    harness.run(0, 1, walk, QUICK)


def test_leases_are_renewed_while_a_request_lives(harness: Any) -> None:
    """On both sides, with the keys that live there."""

    async def walk(cluster: Any) -> None:
        cluster.submit()
        key = await cluster.prefill.told("r")
        await cluster.prefill.until(lambda worker: key in worker.renewed)
        await cluster.decode.until(lambda worker: key in worker.renewed)

    harness.run(1, 1, walk, replace(QUICK, renew_s=0.1))


def test_columns_of_different_lengths_are_refused() -> None:
    """Two attempts and one token: nobody knows whose it is."""
    plain = worker_pb2.PlainTokens(attempts=[4, 5], indexes=[0, 0], token_ids=[7])
    with pytest.raises(IncompatiblePeer, match="differ in length"):
        event_from_proto(worker_pb2.WorkerMessage(step=worker_pb2.StepOutput(plain=plain)))


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ({"layout_fingerprint": b"X" * 32}, "not the same model, dtype or block size"),
        ({"protocol_version": "0"}, f"speaks protocol '0', this router '{PROTOCOL_VERSION}'"),
        ({"num_blocks": 0}, "incomplete hello"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused(harness: Any, hello: dict[str, Any], words: str) -> None:
    """One clear line, no session, and the others serve."""

    async def main() -> None:
        good, bad = harness.FakeWorker("decode-0", "decode"), harness.FakeWorker("decode-1", "decode", **hello)
        async with harness.cluster([good], QUICK) as cluster:
            await bad.start()
            with harness.log() as log:
                cluster.core.add_worker(bad.address)
                await log.until(words)
                for _ in range(3):
                    await bad.until_session_ends()
            assert [view.id for view in cluster.core.workers() if view.up] == ["decode-0"]
            assert not cluster.core.is_ready()  # it is expected, and not there
            await cluster.core.remove_worker(bad.address)
            assert cluster.core.is_ready()
            cluster.submit()
            await good.told("r")
            await bad.kill()
        lines = [line for line in log.lines if words in line]
        assert len(lines) == 1 and "decode-1" in lines[0]

    asyncio.run(main())


def test_a_wrong_secret_gets_no_session(harness: Any) -> None:
    """Said once, by name of the status; never by the secret."""

    async def main() -> None:
        worker = harness.FakeWorker("decode-0", "decode")
        with harness.log() as log:
            async with harness.cluster([worker], QUICK, secret="wr0ng", ready=False) as cluster:
                await log.until("UNAUTHENTICATED")
                assert not cluster.core.is_ready() and cluster.core.workers() == []
                with pytest.raises(NoWorker):
                    cluster.submit()
        assert worker.sessions == 0 and not any("wr0ng" in line for line in log.lines)

    asyncio.run(main())


def test_a_running_id_is_taken(harness: Any) -> None:
    """ALREADY_EXISTS for the same body (the seed may be the router's), INVALID_ARGUMENT for another; both harmless."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit(sampling=SamplingParams(max_tokens=8, seed=1))
        key = await cluster.decode.told("r")
        with pytest.raises(AlreadyExists, match="request r is running"):
            cluster.submit(sampling=SamplingParams(max_tokens=8, seed=2))
        with pytest.raises(RequestError, match="in use by another request") as caught:
            cluster.submit(prompt_token_ids=(1, 2))
        assert type(caught.value) is RequestError and caught.value.field == "request_id"
        cluster.decode.tokens(key, 0, 1, finish=FinishReason.STOP)
        assert (await harness.read_all(stream))[0] == [1]
        cluster.submit()

    harness.run(0, 1, walk)


def test_impossible_requests_are_refused_before_any_worker_hears(harness: Any) -> None:
    """Too long for any pool; deadline already past."""

    async def walk(cluster: Any) -> None:
        with pytest.raises(PromptTooLong, match="the KV pool holds 15,999"):
            cluster.submit(prompt_token_ids=tuple(range(16_000)))
        with pytest.raises(DeadlineExceeded):
            cluster.submit(deadline_s=cluster.clock.now() - 1.0)
        assert not cluster.decode.submits and len(cluster.core.running) == 0

    harness.run(0, 1, walk)
