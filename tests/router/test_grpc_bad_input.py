"""Bad input over gRPC: each row of the list gets its status, names its field, and reaches no worker."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from pdserve import __version__
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc as pb_grpc

GENERATE = "/pdserve.v1.InferenceService/Generate"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def text_request(**fields):
    return pb.GenerateRequest(text="x", **fields)


def ids_request(*ids, **fields):
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), **fields)


def sampled(**fields):
    return text_request(sampling=pb.SamplingParams(**fields))


def deep(depth):
    """Groups (wire type 3) of an unknown field 100, one inside the other."""
    return b"\xa3\x06" * depth + b"\xa4\x06" * depth


# (row, request, field named, words in the message)
REFUSED = [
    ("B1 empty", pb.GenerateRequest(), "prompt", "missing"),
    ("B3 empty text", pb.GenerateRequest(text=""), "prompt", "empty"),
    ("B3 no ids", ids_request(), "prompt", "no tokens"),
    ("B4 -1", ids_request(5, -1), "prompt[1]", "-1"),
    ("B4 vocab", ids_request(512), "prompt[0]", "511"),
    ("B4 2^31", ids_request(1, 2, 2**31), "prompt[2]", "2147483648"),
    ("B5 context + 1", ids_request(*[5] * 257), "prompt", "257 tokens, limit 255"),
    ("B5 context", ids_request(*[5] * 256), "prompt", "256 tokens, limit 255"),
    ("B5 text", pb.GenerateRequest(text="ab " * 400), "prompt", "limit 255"),
    ("B16 1 MB of one character", pb.GenerateRequest(text="a" * 10**6), "prompt", "limit 255"),
    ("B7 0", text_request(max_tokens=0), "max_tokens", "at least 1"),
    ("B7 negative", text_request(max_tokens=-3), "max_tokens", "-3"),
    ("B7 2^31 - 1", ids_request(5, max_tokens=2**31 - 1), "max_tokens", "limit 255"),
    ("B7 one too many", ids_request(5, 5, max_tokens=255), "max_tokens", "limit 254"),
    ("min_tokens above", text_request(min_tokens=9, max_tokens=8), "min_tokens", "at most 8"),
    ("min_tokens negative", text_request(min_tokens=-1), "min_tokens", "at least 0"),
    ("B8 -1", sampled(temperature=-1), "sampling.temperature", "-1"),
    ("B8 nan", sampled(temperature=math.nan), "sampling.temperature", "nan"),
    ("B8 inf", sampled(temperature=math.inf), "sampling.temperature", "inf"),
    ("B8 1e9", sampled(temperature=1e9), "sampling.temperature", "at most 100"),
    ("B10 top_p 0", sampled(top_p=0), "sampling.top_p", "more than 0"),
    ("B10 top_p 1.1", sampled(top_p=1.1), "sampling.top_p", "1.1"),
    ("B10 top_p nan", sampled(top_p=math.nan), "sampling.top_p", "nan"),
    ("B10 top_k -2", sampled(top_k=-2), "sampling.top_k", "-2"),
    ("min_p", sampled(min_p=1.5), "sampling.min_p", "1.5"),
    ("repetition 0", sampled(repetition_penalty=0), "sampling.repetition_penalty", "more than 0"),
    ("presence", sampled(presence_penalty=2.5), "sampling.presence_penalty", "2.5"),
    ("frequency nan", sampled(frequency_penalty=math.nan), "sampling.frequency_penalty", "nan"),
    ("B13 1000 stops", text_request(stop=["a"] * 1000), "stop", "1,000 strings, limit 4"),
    ("B13 empty stop", text_request(stop=["a", ""]), "stop[1]", "empty"),
    ("B13 long stop", text_request(stop=["a" * 10**6]), "stop[0]", "1,000,000 characters, limit 128"),
    ("stop id", text_request(stop_token_ids=[512]), "stop_token_ids[0]", "512"),
    ("stop ids", text_request(stop_token_ids=[1] * 1000), "stop_token_ids", "1,000"),
    ("B14 id", sampled(logit_bias={512: 1.0}), "sampling.logit_bias", "512"),
    ("B14 entries", sampled(logit_bias=dict.fromkeys(range(10**5), 1.0)), "sampling.logit_bias", "100,000"),
    ("B14 inf", sampled(logit_bias={1: math.inf}), "sampling.logit_bias[1]", "inf"),
    ("logprobs", text_request(logprobs=10**6), "logprobs", "at most 20"),
    ("logprobs -1", text_request(logprobs=-1), "logprobs", "at least 0"),
    ("B27 10 KB", text_request(request_id="a" * 10_000), "request_id", "10,000 characters"),
    ("B27 control", text_request(request_id="a\nb"), "request_id", "printable"),
    ("B27 path", text_request(request_id="../../etc/passwd"), "request_id", "path"),
    ("B27 dots", text_request(request_id=".."), "request_id", "path"),
    ("B30 priority", text_request(priority=2**31 - 1), "priority", "1,000,000"),
    ("tenant", text_request(tenant="é"), "tenant", "printable"),
    ("slo", text_request(slo=pb.Slo(ttft_s=0)), "slo.ttft_s", "more than 0"),
    ("slo nan", text_request(slo=pb.Slo(tpot_s=math.nan)), "slo.tpot_s", "nan"),
]  # fmt: skip

ACCEPTED = [
    ("B6 context - 1", ids_request(*[5] * 255, max_tokens=1)),
    ("B9 greedy with top_k", sampled(temperature=0, top_k=5)),
    ("B10 top_k off", sampled(top_k=-1, temperature=1)),
    ("B11 largest seed", sampled(seed=2**64 - 1)),
    ("B16 NUL, right to left, joined emoji", pb.GenerateRequest(text="\0 \u202e \U0001f469\u200d\U0001f4bb")),
    ("B17 markers", pb.GenerateRequest(text="a<|endoftext|><|im_start|>b")),
    ("unknown class counts as default", text_request(slo=pb.Slo(**{"class": "nobody"}))),
]


async def failure(call):
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


@pytest.mark.parametrize(("request_", "field", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(core, open_doors, request_, field, words):
    async def run():
        async with open_doors() as doors:
            return await failure(doors.stub.Generate(request_))

    error = asyncio.run(run())
    assert error.code() is INVALID, error.details()
    assert words in error.details() and len(error.details()) < 300
    bad = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(bad)
    assert bad.field_violations[0].field == field
    assert core.submitted == []


@pytest.mark.parametrize("request_", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_accepted(core, open_doors, request_):
    async def run():
        async with open_doors() as doors:
            return [response async for response in doors.stub.Generate(request_)]

    assert asyncio.run(run())[-1].HasField("complete")
    assert len(core.submitted) == 1


def test_an_unknown_model_is_not_found(core, open_doors):
    async def run():
        async with open_doors() as doors:
            return await failure(doors.stub.Generate(text_request(model="gpt-9")))

    assert asyncio.run(run()).code() is grpc.StatusCode.NOT_FOUND
    assert core.submitted == []


# (row, bytes, status) sent as they are
RAW = [
    ("B15 bytes that are no UTF-8", b"\x1a\x02\xff\xfe", INVALID),
    ("B18 not protobuf", b"\xff\xff\xff\xff\x07garbage", INVALID),
    ("B18 half a message", b"\x1a\x7fabc", INVALID),
    ("B19 nested 200 deep", deep(200), INVALID),
    ("B20 5 MB", b"\x1a" + b"\x80\x80\xc0\x02" + b"a" * (5 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED),
]


@pytest.mark.parametrize(("raw", "status"), [row[1:] for row in RAW], ids=[row[0] for row in RAW])
def test_bytes_that_are_no_request(core, open_doors, raw, status):
    async def run():
        async with open_doors() as doors:
            call = doors.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
            error = await failure(call(raw))
            answered = [r async for r in doors.stub.Generate(text_request())]  # others are unaffected
            return error, answered

    error, answered = asyncio.run(run())
    assert error.code() is status
    assert "Traceback" not in error.details() and "google" not in error.details()
    assert answered[-1].HasField("complete")


def test_both_prompts_is_the_last_one_by_protobufs_own_rule(core, open_doors):
    raw = text_request().SerializeToString() + ids_request(7).SerializeToString()

    async def run():
        async with open_doors() as doors:
            call = doors.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
            return [r async for r in call(raw)]

    asyncio.run(run())
    assert core.submitted[0].prompt_token_ids == (7,)


def test_unknown_fields_are_ignored_and_unknown_methods_are_not(core, open_doors):
    async def run():
        async with open_doors() as doors:
            call = doors.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
            raw = text_request().SerializeToString() + b"\xfa\x3e\x03abc"
            assert [r async for r in call(raw)]
            codes = []
            for method in ("/pdserve.v1.InferenceService/Nothing", "/no.Service/Generate"):
                codes.append((await failure(doors.channel.unary_stream(method)(b""))).code())
            return codes

    assert asyncio.run(run()) == [grpc.StatusCode.UNIMPLEMENTED] * 2


@pytest.mark.parametrize("size", [12_000, 20_000])
def test_metadata_beyond_the_limit_is_refused(core, open_doors, size):
    async def run():
        async with open_doors() as doors:
            return await failure(doors.stub.Generate(text_request(), metadata=(("x-big", "a" * size),)))

    assert asyncio.run(run()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert core.submitted == []


def test_a_deadline_that_has_passed_does_no_work(core, open_doors):
    async def run():
        async with open_doors() as doors:
            return await failure(doors.stub.Generate(text_request(), timeout=0))

    assert asyncio.run(run()).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert core.submitted == []


def test_the_key_is_asked_for_everywhere_but_for_health(core, open_doors):
    def bearer(key):
        return (("authorization", f"Bearer {key}"),)

    async def run():
        async with open_doors(api_keys={"sesame": ""}) as doors:
            for metadata in (None, bearer("wrong"), (("authorization", "sesame"),), bearer("sesam")):
                error = await failure(doors.stub.Generate(text_request(), metadata=metadata))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as info:
                await doors.stub.GetServerInfo(pb.GetServerInfoRequest())
            assert info.value.code() is grpc.StatusCode.UNAUTHENTICATED
            reflection = reflection_pb2_grpc.ServerReflectionStub(doors.channel).ServerReflectionInfo(iter(()))
            assert (await failure(reflection)).code() is grpc.StatusCode.UNAUTHENTICATED
            assert core.submitted == []
            await health_pb2_grpc.HealthStub(doors.channel).Check(health_pb2.HealthCheckRequest())
            return [r async for r in doors.stub.Generate(text_request(), metadata=bearer("sesame"))]

    assert asyncio.run(run())[-1].HasField("complete")


def test_a_key_speaks_for_its_tenant_only(core, open_doors):
    key = (("authorization", "Bearer for-acme"),)

    async def run():
        async with open_doors(api_keys={"for-acme": "acme"}) as doors:
            for tenant in ("", "acme"):
                request = text_request()
                request.tenant = tenant
                assert [r async for r in doors.stub.Generate(request, metadata=key)]
            request.tenant = "beta"
            refused = await failure(doors.stub.Generate(request, metadata=key))
            with pytest.raises(grpc.aio.AioRpcError) as abort:
                await doors.stub.Abort(pb.AbortRequest(request_id="x", tenant="beta"), metadata=key)
            return refused, abort.value

    refused, abort = asyncio.run(run())
    assert refused.code() is abort.code() is grpc.StatusCode.PERMISSION_DENIED
    assert [request.tenant for request in core.submitted] == ["acme", "acme"]


def test_too_many_requests_are_told_when_to_come_back(core, open_doors):
    never = asyncio.Event()
    core.script = lambda request: [[100], never]

    async def run():
        async with open_doors(limits={"max_concurrent_requests": 2}) as doors:
            calls = [doors.stub.Generate(text_request()) for _ in range(2)]
            for call in calls:
                await call.read()
            error = await failure(doors.stub.Generate(text_request()))
            for call in calls:
                call.cancel()
            return error

    error = asyncio.run(run())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in rpc_status.from_call(error).details)


def test_health_follows_readiness_and_drain(core, open_doors):
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING

    async def run():
        async with open_doors() as doors:
            stub = health_pb2_grpc.HealthStub(doors.channel)

            async def check(service):
                return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

            async def both():
                return {await check(""), await check("pdserve.v1.InferenceService")}

            core.not_ready = "no decode worker is up"
            assert await both() == {not_serving}
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="pdserve.v1.InferenceService"))
            assert (await watch.read()).status == not_serving
            core.not_ready = ""
            assert await both() == {serving}
            assert (await watch.read()).status == serving
            doors.desk.drain()
            assert await both() == {not_serving}
            error = await failure(doors.stub.Generate(text_request()))
            assert error.code() is grpc.StatusCode.UNAVAILABLE and "draining" in error.details()
            watch.cancel()

    asyncio.run(run())


def test_reflection_lists_the_service_and_info_names_the_workers(open_doors):
    async def run():
        async with open_doors() as doors:
            stub = reflection_pb2_grpc.ServerReflectionStub(doors.channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (listed,) = [r async for r in stub.ServerReflectionInfo(iter([request]))]
            info = await pb_grpc.InferenceServiceStub(doors.channel).GetServerInfo(pb.GetServerInfoRequest())
            return {service.name for service in listed.list_services_response.service}, info

    names, info = asyncio.run(run())
    assert {"pdserve.v1.InferenceService", "grpc.health.v1.Health"} <= names
    assert (info.model, info.max_model_len, info.vocab_size, info.version) == ("tiny", 256, 512, __version__)
    assert [(w.id, w.role, w.device, w.up) for w in info.workers] == [
        ("prefill-0", "prefill", "cpu", True),
        ("decode-0", "decode", "cpu", False),
    ]
