"""The gRPC front door over a real socket: what is served, and how it ends."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pdserve.errors import Cancelled, DeadlineExceeded, NoWorker, PeerLost, QueueFull, RequestError
from pdserve.slo import Blame, Verdict
from pdserve.v1 import inference_pb2 as pb
from router.grpc_front.conversion import draft_from
from router.prompts import TOKENIZER_THREADS


async def collect(call):
    """Every chunk, and the complete."""
    responses = [response async for response in call]
    chunks = [response.chunk for response in responses[:-1]]
    assert all(response.WhichOneof("response") == "chunk" for response in responses[:-1])
    assert responses[-1].WhichOneof("response") == "complete"
    assert len({response.request_id for response in responses}) == 1
    return chunks, responses[-1].complete


async def failure(call):
    """The error that a stream ends with."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


def details_of(error):
    """The google.rpc details, by type name."""
    status = rpc_status.from_call(error)
    return {detail.TypeName().rpartition(".")[2]: detail for detail in status.details} if status else {}


def test_a_completion_streams_and_ends_with_everything(core, open_doors, tokenizer):
    ids = tokenizer.encode("the cost of é and 漢")[1:]
    core.script = lambda request: [ids[:2], ids[2:3], ids[3:]]

    async def run():
        async with open_doors() as doors:
            request = pb.GenerateRequest(request_id="r-1", text="say", max_tokens=100)
            return await collect(doors.stub.Generate(request))

    chunks, complete = asyncio.run(run())
    text = tokenizer.decode(ids)
    assert [i for chunk in chunks for i in chunk.token_ids] == list(complete.token_ids) == ids
    assert "".join(chunk.text for chunk in chunks) == complete.text == text == "the cost of é and 漢"
    assert complete.finish_reason == pb.FINISH_REASON_STOP
    assert complete.usage == pb.Usage(
        prompt_tokens=len(tokenizer.encode("say")), completion_tokens=len(ids), cached_tokens=3
    )
    assert complete.timing.prefill_worker == "prefill-0" and complete.timing.transfer_s == 0.5
    assert complete.slo == pb.SloOutcome(met_ttft=True, met_tpot=False, blame=pb.BLAME_TRANSFER)


def test_defaults_are_greedy_and_the_rest_of_the_context(core, open_doors, card):
    async def run():
        async with open_doors() as doors:
            await collect(doors.stub.Generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7]))))

    asyncio.run(run())
    (request,) = core.submitted
    assert request.prompt_token_ids == (5, 6, 7)  # taken as they are: no BOS
    assert request.sampling.greedy and request.sampling.max_tokens == card.max_model_len - 3
    assert request.sampling.eos_token_ids == card.eos_token_ids
    assert request.request_id.startswith("req-") and request.tenant == "default"


def test_each_delta_is_a_chunk_for_a_client_that_keeps_up(core, open_doors):
    gates = [asyncio.Event() for _ in range(3)]
    core.script = lambda request: [[100], gates[0], [101], gates[1], [102], gates[2]]

    async def run():
        async with open_doors() as doors:
            call = doors.stub.Generate(pb.GenerateRequest(text="x"))
            for gate, expected in zip(gates, (100, 101, 102), strict=True):
                response = await call.read()
                assert list(response.chunk.token_ids) == [expected]
                gate.set()
            assert (await call.read()).WhichOneof("response") == "complete"

    asyncio.run(run())


def test_a_stop_string_ends_the_workers_and_trims_the_usage(core, open_doors, tokenizer):
    ids = tokenizer.encode("one two three four")[1:]
    never = asyncio.Event()
    core.script = lambda request: [*([i] for i in ids), never]

    async def run():
        async with open_doors() as doors:
            return await collect(doors.stub.Generate(pb.GenerateRequest(text="x", stop=["o t", "zzz"])))

    chunks, complete = asyncio.run(run())
    assert "".join(chunk.text for chunk in chunks) == complete.text == "one tw"
    assert complete.finish_reason == pb.FINISH_REASON_STOP
    needed = next(n for n in range(len(ids)) if "o t" in tokenizer.decode(ids[:n]))
    assert core.streams[0].finished_at == needed == complete.usage.completion_tokens == len(complete.token_ids)


def test_the_end_token_is_counted_and_has_no_text(core, open_doors, tokenizer, card):
    word = tokenizer.encode("stop")[1:]
    core.script = lambda request: [word, [word[0]]]

    async def run():
        async with open_doors() as doors:
            request = pb.GenerateRequest(text="x", stop_token_ids=[word[0]], min_tokens=1)
            return await collect(doors.stub.Generate(request))

    _, complete = asyncio.run(run())
    assert list(complete.token_ids) == [*word, word[0]]
    assert complete.text == tokenizer.decode(word[1:])


def test_logprobs_come_one_per_token(core, open_doors):
    async def run():
        async with open_doors() as doors:
            return await collect(doors.stub.Generate(pb.GenerateRequest(text="x", logprobs=2)))

    chunks, _ = asyncio.run(run())
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    assert [entry.token_id for entry in entries] == [100, 101, 102, 103]
    assert [top.token_id for top in entries[0].top] == [100, 101]


def test_a_client_that_cancels_cancels_the_core(core, open_doors):
    never = asyncio.Event()
    core.script = lambda request: [[100], never]

    async def run():
        async with open_doors() as doors:
            call = doors.stub.Generate(pb.GenerateRequest(text="x"))
            await call.read()
            call.cancel()
            await asyncio.wait_for(core.streams[0].cancelled.wait(), 1)
            await asyncio.wait_for(doors.desk.idle(), 1)

    asyncio.run(run())


def test_the_clients_deadline_reaches_the_core_and_is_kept(core, open_doors):
    never = asyncio.Event()
    core.script = lambda request: [never]

    async def run():
        async with open_doors() as doors:
            error = await failure(doors.stub.Generate(pb.GenerateRequest(text="x"), timeout=0.3))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await asyncio.wait_for(core.streams[0].cancelled.wait(), 1)

    asyncio.run(run())
    (request,) = core.submitted
    assert 0.1 < request.deadline_s - request.received_s <= 0.31  # grpc rounds a timeout up


def test_a_deadline_that_passes_before_the_core_sees_the_request_counts_as_rejected(core, open_doors):
    """Once, with the deadline as its reason."""

    async def run():
        async with open_doors(limits={"max_inline_chars": 0, "default_deadline_s": 0.1}) as doors:
            go_on = threading.Event()
            for _ in range(TOKENIZER_THREADS):
                doors.desk.prompts._threads.submit(go_on.wait, 10.0)
            error = await failure(doors.stub.Generate(pb.GenerateRequest(text="x")))
            go_on.set()
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(run())
    ((_, late),) = core.rejected
    assert isinstance(late, DeadlineExceeded) and not core.submitted


def test_without_a_deadline_the_servers_own_applies(core, open_doors):
    never = asyncio.Event()
    core.script = lambda request: [[100], never]

    async def run():
        async with open_doors(limits={"default_deadline_s": 0.2}) as doors:
            return await failure(doors.stub.Generate(pb.GenerateRequest(text="x")))

    error = asyncio.run(run())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and "0.2 s" in error.details()
    assert core.streams[0].cancelled.is_set()


def test_a_deadline_beyond_the_limit_is_moved_to_it(core, open_doors):
    async def run():
        async with open_doors() as doors:
            await collect(doors.stub.Generate(pb.GenerateRequest(text="x"), timeout=10 * 365 * 86400))

    asyncio.run(run())
    assert core.submitted[0].deadline_s - core.submitted[0].received_s == pytest.approx(3600)


def test_errors_of_the_core_carry_status_and_details(core, open_doors):
    async def run():
        async with open_doors() as doors:
            seen = []
            for error in (QueueFull("the queue is full", retry_after_s=2.5), NoWorker("no prefill worker")):
                core.refuse = error
                seen.append(await failure(doors.stub.Generate(pb.GenerateRequest(text="x"))))
            core.refuse = None
            core.script = lambda request: [[100], PeerLost("decode-0 is gone")]
            seen.append(await failure(doors.stub.Generate(pb.GenerateRequest(text="x"))))
            return seen

    full, nobody, lost = asyncio.run(run())
    assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    assert details_of(full)["RetryInfo"].Unpack(retry) and retry.retry_delay.ToNanoseconds() == 2_500_000_000
    assert nobody.code() is lost.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("is_rejected", [True, False])
def test_an_error_carries_the_verdict_on_the_request(core, open_doors, is_rejected):
    """Behind the details that every client knows; what was not judged has none."""
    error, caller = PeerLost("decode-0 is gone", retry_after_s=1.0), RequestError("no")
    error.verdict = Verdict(True, False, Blame.WORKER_LOSS)

    async def run():
        async with open_doors() as doors:
            seen = []
            for one in (error, caller):
                core.refuse, core.script = (one if is_rejected else None), lambda request, one=one: [[100], one]
                seen.append(await failure(doors.stub.Generate(pb.GenerateRequest(text="x"))))
            return seen

    judged, unjudged = map(details_of, asyncio.run(run()))
    assert list(judged) == ["RetryInfo", "SloOutcome"] and "SloOutcome" not in unjudged
    slo = pb.SloOutcome()
    assert judged["SloOutcome"].Unpack(slo)
    assert slo == pb.SloOutcome(met_ttft=True, met_tpot=False, blame=pb.BLAME_WORKER_LOSS)


def test_a_bug_below_shows_nothing_of_itself(core, open_doors):
    def broken(request):
        yield [100]
        raise KeyError("/secret/path")

    core.script = broken

    async def run():
        async with open_doors() as doors:
            return await failure(doors.stub.Generate(pb.GenerateRequest(text="x")))

    error = asyncio.run(run())
    assert error.code() is grpc.StatusCode.INTERNAL and error.details() == "internal error"


def test_tokens_out_of_place_end_the_request(core, open_doors):
    async def run():
        async with open_doors() as doors:
            submit = core.submit

            def shifted(request):
                stream = submit(request)
                stream.num_given = 1  # the first delta then says that it begins at 1
                return stream

            core.submit = shifted
            return await failure(doors.stub.Generate(pb.GenerateRequest(text="x")))

    assert asyncio.run(run()).code() is grpc.StatusCode.INTERNAL


def test_a_client_that_reads_nothing_is_cancelled_and_slows_nobody(core, open_doors):
    core.script = lambda request: [*([100] for _ in range(200)), asyncio.Event()]
    limits = {"max_unread_s": 0.2}

    async def run():
        draft = draft_from(pb.GenerateRequest(text="x"), None)
        async with open_doors(limits=limits) as doors, doors.desk.serve(draft) as generation:
            await generation.take()
            await asyncio.Event().wait()  # a writer that is stuck

    with pytest.raises(Cancelled, match="read nothing"):
        asyncio.run(run())
    assert core.streams[0].cancelled.is_set() and core.streams[0].num_given == 200


def test_deltas_grow_together_while_a_client_is_behind(core, open_doors):
    played = asyncio.Event()

    def script(request):
        for _ in range(200):
            yield [100]
        played.set()
        yield asyncio.Event()

    core.script = script
    draft = draft_from(pb.GenerateRequest(text="x"), None)

    async def run():
        async with open_doors() as doors, doors.desk.serve(draft) as generation:
            await played.wait()
            (update,) = await generation.take()
            return update

    assert len(asyncio.run(run()).token_ids) == 200


def test_abort_ends_the_stream_with_its_reason(core, open_doors):
    never = asyncio.Event()
    core.script = lambda request: [[100], never]

    async def run():
        async with open_doors() as doors:
            call = doors.stub.Generate(pb.GenerateRequest(request_id="mine", text="x", tenant="t"))
            await call.read()
            texts = []
            for request_id, tenant in (("mine", "other"), ("none", "t")):
                try:
                    await doors.stub.Abort(pb.AbortRequest(request_id=request_id, tenant=tenant))
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.NOT_FOUND
                    texts.append(error.details())
            assert len(texts) == 2 and texts[0] == texts[1]
            await doors.stub.Abort(pb.AbortRequest(request_id="mine", tenant="t"))
            return (await call.read()).complete

    assert asyncio.run(run()).finish_reason == pb.FINISH_REASON_ABORT


def test_a_running_id_cannot_be_used_again(core, open_doors):
    never = asyncio.Event()
    core.script = lambda request: [[100], never]

    async def run():
        async with open_doors() as doors:
            call = doors.stub.Generate(pb.GenerateRequest(request_id="one", text="x"))
            await call.read()
            return await failure(doors.stub.Generate(pb.GenerateRequest(request_id="one", text="x")))

    assert asyncio.run(run()).code() is grpc.StatusCode.ALREADY_EXISTS


def test_text_is_tokenized_as_it_would_be_served_and_back(open_doors, tokenizer, card):
    async def run():
        async with open_doors() as doors:
            made = await doors.stub.Tokenize(pb.TokenizeRequest(text="say é"))
            back = await doors.stub.Detokenize(pb.DetokenizeRequest(ids=made.ids))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await doors.stub.Detokenize(pb.DetokenizeRequest(ids=[5, -1]))
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await doors.stub.Tokenize(pb.TokenizeRequest(model="gpt-9", text="x"))
            return made, back, refused.value, unknown.value

    made, back, refused, unknown = asyncio.run(run())
    assert list(made.ids) == tokenizer.encode("say é") and made.max_model_len == card.max_model_len
    assert back.text == "<|bos|>say é"
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT and "ids[1]" in refused.details()
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
