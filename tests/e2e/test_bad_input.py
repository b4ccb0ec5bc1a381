"""Hostile input to a whole cluster: the expected answer, and nobody else is disturbed."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from pdserve.v1 import inference_pb2 as pb

pytestmark = pytest.mark.e2e

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
CONTEXT, VOCAB = 2304, 512
REPOSITORY = str(Path(__file__).resolve().parents[2])
GENERATE = "/pdserve.v1.InferenceService/Generate"


def ids(*tokens: int) -> Any:
    return pb.TokenIds(ids=tokens)


def sampling(**fields: Any) -> Any:
    return pb.GenerateRequest(token_ids=ids(1, 2), max_tokens=2, sampling=pb.SamplingParams(**fields))


BAD = {
    "B1 empty": (pb.GenerateRequest(), INVALID, "prompt"),
    "B3 no text": (pb.GenerateRequest(text=""), INVALID, "prompt"),
    "B3 no ids": (pb.GenerateRequest(token_ids=ids()), INVALID, "prompt"),
    "B4 id -1": (pb.GenerateRequest(token_ids=ids(5, -1)), INVALID, "1"),
    "B4 id = vocab": (pb.GenerateRequest(token_ids=ids(VOCAB)), INVALID, str(VOCAB)),
    "B4 id 2**31": (pb.GenerateRequest(token_ids=ids(2**31)), INVALID, str(2**31)),
    "B5 context + 1": (pb.GenerateRequest(token_ids=ids(*[1] * (CONTEXT + 1))), INVALID, f"{CONTEXT - 1:,}"),
    "B7 0": (pb.GenerateRequest(token_ids=ids(1), max_tokens=0), INVALID, "max_tokens"),
    "B7 negative": (pb.GenerateRequest(token_ids=ids(1), max_tokens=-3), INVALID, "max_tokens"),
    "B7 2**31 - 1": (pb.GenerateRequest(token_ids=ids(1), max_tokens=2**31 - 1), INVALID, "max_tokens"),
    "B8 -1": (sampling(temperature=-1.0), INVALID, "temperature"),
    "B8 nan": (sampling(temperature=float("nan")), INVALID, "temperature"),
    "B8 inf": (sampling(temperature=float("inf")), INVALID, "temperature"),
    "B8 1e9": (sampling(temperature=1e9), INVALID, "temperature"),
    "B10 top_p 0": (sampling(top_p=0.0), INVALID, "top_p"),
    "B10 top_p 1.1": (sampling(top_p=1.1), INVALID, "top_p"),
    "B10 top_k -2": (sampling(top_k=-2), INVALID, "top_k"),
    "B13 1000": (pb.GenerateRequest(token_ids=ids(1), stop=["x"] * 1000), INVALID, "stop"),
    "B13 empty": (pb.GenerateRequest(token_ids=ids(1), stop=[""]), INVALID, "stop"),
    "B13 1 MB": (pb.GenerateRequest(token_ids=ids(1), stop=["x" * 10**6]), INVALID, "stop"),
    "B14 id": (sampling(logit_bias={VOCAB: 1.0}), INVALID, "logit_bias"),
    "B14 many": (sampling(logit_bias=dict.fromkeys(range(400), 1.0)), INVALID, "logit_bias"),
    "B14 inf": (sampling(logit_bias={1: float("inf")}), INVALID, "logit_bias"),
    "B20 5 MB": (pb.GenerateRequest(text="a " * 2_500_000), EXHAUSTED, ""),
    "B27 10 KB": (pb.GenerateRequest(request_id="x" * 10_000, token_ids=ids(1)), INVALID, "request_id"),
    "B27 control": (pb.GenerateRequest(request_id="a\nb", token_ids=ids(1)), INVALID, "request_id"),
    "B27 path": (pb.GenerateRequest(request_id="../../x", token_ids=ids(1)), INVALID, "request_id"),
    "B30 model": (pb.GenerateRequest(model="other", token_ids=ids(1)), grpc.StatusCode.NOT_FOUND, "model"),
}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, serve_in: Any) -> Iterator[Any]:
    with serve_in(tmp_path_factory.mktemp("bad"), tiny_model, "--dtype", "float32") as running:
        yield running


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_bad_requests_get_their_answer_while_a_good_one_runs(server: Any, make_request: Any, make_prompts: Any) -> None:
    (good,) = make_prompts(9, [60])
    expected = server.generate(make_request(good, 40)).tokens
    stop, answers = threading.Event(), []

    def go_on() -> None:
        while not stop.is_set():
            answers.append(server.generate(make_request(good, 40)).tokens)

    company = threading.Thread(target=go_on)
    company.start()
    try:
        for name, (request, code, words) in BAD.items():
            error = refused(lambda request=request: server.generate(request))
            assert error.code() is code, f"{name}: {error.code()} {error.details()}"
            assert words in error.details(), f"{name}: {error.details()}"
            for inside in ("Traceback", "Error(", ".py", REPOSITORY, "site-packages"):
                assert inside not in error.details(), f"{name}: {error.details()}"
    finally:
        stop.set()
        company.join()
    assert answers and all(tokens == expected for tokens in answers)
    server.wait_all_blocks_free()


def test_borderline_requests_are_served(server: Any, make_request: Any) -> None:
    """B6, B9, B16, B17, B21, B26."""
    assert len(server.generate(make_request([7] * (CONTEXT - 1), 1)).tokens) == 1
    greedy = server.generate(make_request([1, 2, 3], 4)).tokens
    with_top_k = make_request([1, 2, 3], 4, sampling=pb.SamplingParams(temperature=0.0, top_k=5))
    assert server.generate(with_top_k).tokens == greedy
    for text in ("a\0b", "\u202eabc", "\N{FAMILY}\u200d\N{GIRL}", "<|endoftext|> <|im_start|>user"):
        answer = server.generate(pb.GenerateRequest(text=text, max_tokens=3, ignore_eos=True))
        assert len(answer.tokens) == 3
    extended = make_request([1, 2, 3], 4).SerializeToString() + b"\xfa\x3f\x03abc"  # an unknown field 1023
    raw = server.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
    last = pb.GenerateResponse.FromString(list(raw(extended, timeout=30))[-1])
    assert list(last.complete.token_ids) == greedy
    assert server.generate(make_request([1, 2, 3], 4), timeout_s=10 * 365 * 86400.0).tokens == greedy


def test_bytes_that_are_no_message_and_methods_that_are_none(server: Any) -> None:
    """B15, B18, B19, B22."""
    raw = server.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
    for bad in (b"\xff\xff\xff", b"\x1a\x02\xff\xfe", b"\x2a\x7f", b"\x0b" * 200):
        assert refused(lambda bad=bad: list(raw(bad, timeout=10))).code() is INVALID
    nothing = server.channel.unary_unary("/pdserve.v1.InferenceService/Nothing")
    assert refused(lambda: nothing(b"", timeout=10)).code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_id_that_runs_is_not_taken_twice(server: Any, make_request: Any) -> None:
    """B28."""
    first = make_request([5] * 1500, 400, request_id="twice")
    call = server.stub.Generate(first, timeout=60)
    next(iter(call))
    assert refused(lambda: server.generate(first)).code() is grpc.StatusCode.ALREADY_EXISTS
    other = make_request([6] * 20, 4, request_id="twice")
    assert refused(lambda: server.generate(other)).code() in (INVALID, grpc.StatusCode.ALREADY_EXISTS)
    call.cancel()
    server.wait_all_blocks_free()
    assert len(server.generate(other).tokens) == 4


def test_a_deadline_in_the_past_does_no_work(server: Any, make_request: Any) -> None:
    """B24."""
    before = server.metrics()["pdserve_prompt_tokens_total"]
    assert refused(lambda: server.generate(make_request([1] * 50, 5), 0.0)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.metrics()["pdserve_prompt_tokens_total"] == before


def test_other_protocols_on_the_grpc_port_are_hung_up_on(server: Any, make_request: Any) -> None:
    """B37."""
    host, port = server.ready["grpc"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while plain.recv(4096):
            pass
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=10) as plain, pytest.raises(OSError, match=r".*"):
        context.wrap_socket(plain, server_hostname="x")
    assert len(server.generate(make_request([1, 2], 2)).tokens) == 2


def test_http_refuses_in_openai_shape_and_serves_the_openai_client(server: Any) -> None:
    url = f"http://{server.ready['http']}"
    body = json.dumps({"model": server.ready["model"], "prompt": "x", "max_tokens": "5"}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    with caught.value as answer:
        assert answer.code == 400 and "max_tokens" in json.load(answer)["error"]["message"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        whole = client.completions.create(model=model, prompt="import os", max_tokens=8, temperature=0)
        stream = client.completions.create(model=model, prompt="import os", max_tokens=8, temperature=0, stream=True)
        assert "".join(part.choices[0].text for part in stream) == whole.choices[0].text
        assert whole.usage is not None and whole.usage.completion_tokens == 8
        chat = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=5, temperature=0
        )
        assert chat.choices[0].finish_reason in ("length", "stop")
