"""Bad input over HTTP: each row of the list gets its status, names its field, and reaches no worker."""

from __future__ import annotations

import asyncio
import gzip
import json

import httpx
import pytest

from router.http_front import build_app

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JSON = {"content-type": "application/json"}
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
DEEP = json.loads('{"a":' * 100 + "1" + "}" * 100)


def completion(**fields):
    return json.dumps({"prompt": "x", **fields}).encode()


def chat(**fields):
    return json.dumps({"messages": HELLO, **fields}).encode()


def message(**fields):
    return chat(messages=[{"role": "user", "content": "x", **fields}])


# (row, path, body, param named, words in the message)
REFUSED = [
    ("B38 malformed", COMPLETIONS, b'{"prompt": ', None, "line 1"),
    ("B38 empty", COMPLETIONS, b"", None, "line 1"),
    ("B38 twice", COMPLETIONS, b'{"prompt": "a", "prompt": "b"}', None, "twice"),
    ("B38 twice, inside", CHAT, b'{"messages": [{"role": "user", "role": "user"}]}', None, "twice"),
    ("B38 NaN", COMPLETIONS, b'{"prompt": "x", "temperature": NaN}', None, "NaN"),
    ("B38 -Infinity", COMPLETIONS, b'{"prompt": "x", "temperature": -Infinity}', None, "Infinity"),
    ("B39 1000 deep", COMPLETIONS, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "deep"),
    ("B39 a million", COMPLETIONS, b'{"prompt": [' + b"1," * 10**6 + b"1]}", "prompt", "1,000,001 tokens"),
    ("B39 1e400", COMPLETIONS, b'{"prompt": "x", "temperature": 1e400}', None, "out of range"),
    ("B39 long integer", COMPLETIONS, b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}", None, "too long"),
    ("B39 80 bits", COMPLETIONS, completion(seed=2**80), "seed", "64 bits"),
    ("B15 not UTF-8", COMPLETIONS, b'{"prompt": "\xff"}', None, "UTF-8"),
    ("B15 surrogate", COMPLETIONS, b'{"prompt": "ab\\ud800"}', "prompt", "surrogate at character 2"),
    ("B15 surrogate in a chat", CHAT, message(content="\ud800"), "messages[0]", "surrogate"),
    ("B15 surrogate in a stop", COMPLETIONS, completion(stop="\ud800"), "stop[0]", "surrogate"),
    ("not an object", COMPLETIONS, b"[]", None, "object"),
    ("B44 stream", COMPLETIONS, completion(stream="yes"), "stream", "boolean"),
    ("B44 stream 1", COMPLETIONS, completion(stream=1), "stream", "boolean"),
    ("B44 max_tokens text", COMPLETIONS, completion(max_tokens="5"), "max_tokens", "integer"),
    ("B44 max_tokens 5.0", COMPLETIONS, completion(max_tokens=5.0), "max_tokens", "integer"),
    ("B44 true as a number", COMPLETIONS, completion(temperature=True), "temperature", "number"),
    ("B44 true as a token", COMPLETIONS, completion(prompt=[1, True]), "prompt[1]", "integer"),
    ("B1 no prompt", COMPLETIONS, b"{}", "prompt", "missing"),
    ("B3 empty", COMPLETIONS, completion(prompt=""), "prompt", "empty"),
    ("B3 no ids", COMPLETIONS, completion(prompt=[]), "prompt", "empty"),
    ("B3 one of several", COMPLETIONS, completion(prompt=["a", ""]), "prompt[1]", "empty"),
    ("B4", COMPLETIONS, completion(prompt=[5, 512]), "prompt[1]", "511"),
    ("B4 one of several", COMPLETIONS, completion(prompt=[[5], [-1]]), "prompt[1][0]", "-1"),
    ("mixed", COMPLETIONS, completion(prompt=[1, "a"]), "prompt[1]", "integer"),
    ("too many prompts", COMPLETIONS, completion(prompt=["a"] * 65), "prompt", "65 prompts, limit 64"),
    ("prompts times n", COMPLETIONS, completion(prompt=["a"] * 10, n=10), "prompt", "100 choices"),
    ("B5", COMPLETIONS, completion(prompt=[5] * 256), "prompt", "256 tokens, limit 255"),
    ("B5 chat", CHAT, message(content="word " * 300), "messages", "limit 255"),
    ("B7 0", COMPLETIONS, completion(max_tokens=0), "max_tokens", "at least 1"),
    ("B7 too many", CHAT, chat(max_tokens=2**31 - 1), "max_tokens", "2,147,483,647"),
    ("both differ", CHAT, chat(max_tokens=1, max_completion_tokens=2), "max_completion_tokens", "differ"),
    ("B8", COMPLETIONS, completion(temperature=-1), "temperature", "at least 0"),
    ("B10", COMPLETIONS, completion(top_p=0), "top_p", "more than 0"),
    ("B10 top_k", COMPLETIONS, completion(top_k=-2), "top_k", "-2"),
    ("B11 negative", COMPLETIONS, completion(seed=-1), "seed", "2^64"),
    ("B11 2^64", COMPLETIONS, completion(seed=2**64), "seed", "2^64"),
    ("B12 0", COMPLETIONS, completion(n=0), "n", "1 to 16"),
    ("B12 10^9", CHAT, chat(n=10**9), "n", "1,000,000,000"),
    ("B13 count", COMPLETIONS, completion(stop=["a"] * 1000), "stop", "1,000"),
    ("B13 empty", COMPLETIONS, completion(stop=[""]), "stop[0]", "empty"),
    ("B13 long", COMPLETIONS, completion(stop="a" * 10**6), "stop[0]", "1,000,000"),
    ("B13 type", COMPLETIONS, completion(stop=[5]), "stop[0]", "string"),
    ("B14 key", COMPLETIONS, completion(logit_bias={"hello": 1}), "logit_bias", "hello"),
    ("B14 id", COMPLETIONS, completion(logit_bias={"512": 1}), "logit_bias", "512"),
    ("B14 value", COMPLETIONS, completion(logit_bias={"5": 101}), "logit_bias[5]", "at most 100"),
    ("B14 null", COMPLETIONS, completion(logit_bias={"5": None}), "logit_bias.5", "null"),
    ("B14 count", COMPLETIONS, completion(logit_bias={str(n): 1 for n in range(500)}), "logit_bias", "500"),
    ("B27", COMPLETIONS, completion(request_id="../x"), "request_id", "path"),
    ("B45 logprobs", COMPLETIONS, completion(logprobs=10**6), "logprobs", "at most 20"),
    ("B45 top_logprobs", CHAT, chat(logprobs=True, top_logprobs=10**6), "top_logprobs", "1,000,000"),
    ("B45 top_logprobs alone", CHAT, chat(top_logprobs=3), "top_logprobs", "logprobs"),
    ("B45 logprobs of a chat", CHAT, chat(logprobs=3), "logprobs", "boolean"),
    ("B45 tools", CHAT, chat(tools=[TOOL]), "tools", "--tool-call-parser"),
    ("a tool of what", CHAT, chat(tools=[{"type": "function"}]), "tools[0].function", "missing"),
    ("a tool of another kind", CHAT, chat(tools=[{**TOOL, "type": "custom"}]), "tools[0].type", "function"),
    ("a tool without a name", CHAT, chat(tools=[{"type": "function", "function": {}}]), "tools[0].function.name", "is"),
    ("a deep tool", CHAT, chat(tools=[{"type": "function", "function": {"name": "f", "parameters": DEEP}}]),
     "tools[0]", "nested deeper than 64"),
    ("B45 tool_choice", CHAT, chat(tool_choice="required"), "tool_choice", "needs tools"),
    ("B45 audio", CHAT, chat(audio={"voice": "a"}), "audio", "not supported"),
    ("B45 format", CHAT, chat(response_format={"type": "xml"}), "response_format.type", "json_schema"),
    ("B45 echo", COMPLETIONS, completion(echo=True, logprobs=1), "echo", "not supported"),
    ("B45 echo 0", COMPLETIONS, completion(echo=0), "echo", "boolean"),
    ("B45 suffix", COMPLETIONS, completion(suffix="z"), "suffix", "not supported"),
    ("B45 best_of", COMPLETIONS, completion(best_of=4), "best_of", "equals n"),
    ("B45 template", CHAT, chat(chat_template="{{ x }}"), "chat_template", "not supported"),
    ("B45 guided", COMPLETIONS, completion(guided_whitespace_pattern=" "), "guided_whitespace_pattern", "not"),
    ("special", COMPLETIONS, completion(skip_special_tokens=0), "skip_special_tokens", "boolean"),
    ("truncate", COMPLETIONS, completion(truncate_prompt_tokens=0), "truncate_prompt_tokens", "at least 1"),
    ("continue alone", CHAT, chat(continue_final_message=True), "continue_final_message", "add_generation_prompt"),
    ("switch", CHAT, chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs.messages", "template's own"),
    ("switch, token", CHAT, chat(chat_template_kwargs={"bos_token": ""}), "chat_template_kwargs.bos_token", "own"),
    ("switches", CHAT, chat(chat_template_kwargs={"a": DEEP}), "chat_template_kwargs", "nested deeper than 64"),
    ("B45 image", CHAT, message(content=[{"type": "image_url"}]), "messages[0].content[0].type", "only text"),
    ("tool_calls", CHAT, message(tool_calls=[{}]), "messages[0].tool_calls[0].function", "missing"),
    ("tool_calls of a user", CHAT, message(tool_calls=[CALL]), "messages[0].tool_calls", "only the assistant"),
    ("a call's arguments", CHAT, message(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
     "messages[0].tool_calls[0].function.arguments", "not JSON"),
    ("an answer by a user", CHAT, message(tool_call_id="c"), "messages[0].tool_call_id", "only role tool"),
    ("unknown", COMPLETIONS, completion(temprature=1), "temprature", "temprature"),
    ("unknown, null", COMPLETIONS, completion(temprature=None), "temprature", "temprature"),
    ("unknown, inside", CHAT, message(contents="x"), "messages[0].contents", "not a field"),
    ("unknown, of another endpoint", COMPLETIONS, completion(messages=HELLO), "messages", "not a field"),
    ("no messages", CHAT, chat(messages=None), "messages", "missing"),
    ("empty messages", CHAT, chat(messages=[]), "messages", "0 messages"),
    ("role", CHAT, message(role="root"), "messages[0].role", "one of"),
    ("no content", CHAT, message(content=None), "messages[0].content", "missing"),
    ("stream_options", COMPLETIONS, completion(stream_options={"include_usage": True}), "stream_options", "stream"),
    ("options", CHAT, chat(stream=True, stream_options={"x": 1}), "stream_options.x", "not a field"),
    ("slo", COMPLETIONS, completion(slo={"ttft_s": -1}), "slo.ttft_s", "more than 0"),
    ("slo, unknown", COMPLETIONS, completion(slo={"e2e_s": 1}), "slo.e2e_s", "not a field"),
    ("priority", COMPLETIONS, completion(priority=2**40), "priority", "1,000,000"),
]  # fmt: skip

ACCEPTED = [
    ("nulls", COMPLETIONS, completion(**dict.fromkeys(["n", "stop", "suffix", "best_of", "logprobs", "user", "seed"]))),
    ("no-ops", COMPLETIONS, completion(echo=False, best_of=2, n=2, length_penalty=1.0, skip_special_tokens=True)),
    ("tools unused", CHAT, chat(tools=[TOOL], tool_choice="none", parallel_tool_calls=False)),
    ("tool turns", CHAT, chat(messages=[*HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                                        {"role": "tool", "tool_call_id": "call_1", "content": "5"}])),
    ("template switches", CHAT, chat(chat_template_kwargs={"enable_thinking": False, "x": ["<|im_end|>"]})),
    ("special tokens", CHAT, chat(add_special_tokens=True, skip_special_tokens=False)),
    ("no-ops of a chat", CHAT, chat(tools=[], tool_choice="auto", store=False, modalities=["text"], functions=None)),
    ("text format", CHAT, chat(response_format={"type": "text"}, service_tier="auto", metadata={"a": "b"})),
    ("parts", CHAT, message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])),
    ("empty system", CHAT, chat(messages=[{"role": "system", "content": ""}, *HELLO])),
    ("name", CHAT, message(name="bob")),
    ("B9", COMPLETIONS, completion(temperature=0, top_k=5)),
    ("top_k off", COMPLETIONS, completion(top_k=-1)),
    ("B16", COMPLETIONS, completion(prompt="\0 \u202e \U0001f469\u200d\U0001f4bb")),
    ("B17", COMPLETIONS, completion(prompt="<|im_start|>user")),
    ("B6", COMPLETIONS, completion(prompt=[5] * 255, max_tokens=1)),
    ("default max_tokens never fails", COMPLETIONS, completion(prompt=[5] * 255)),
]  # fmt: skip


def call(open_desk, method, path, **request):
    """One request to the application itself, without a socket."""

    async def run():
        desk = open_desk()
        try:
            transport = httpx.ASGITransport(app=build_app(desk))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **request)
        finally:
            desk.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body", "param", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(core, open_desk, path, body, param, words):
    response = call(open_desk, "POST", path, content=body, headers=JSON)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param and words in error["message"] and len(error["message"]) < 300
    assert core.submitted == []


@pytest.mark.parametrize(("path", "body"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_accepted(core, open_desk, path, body):
    response = call(open_desk, "POST", path, content=body, headers=JSON)
    assert response.status_code == 200, response.text
    assert core.submitted


def test_a_prompt_too_long_has_openais_code(open_desk):
    body = call(open_desk, "POST", COMPLETIONS, json={"prompt": [5] * 256}).json()
    assert body["error"]["code"] == "context_length_exceeded"


def test_an_unknown_model_is_404(core, open_desk):
    response = call(open_desk, "POST", COMPLETIONS, json={"model": "gpt-9", "prompt": "x"})
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert call(open_desk, "GET", "/v1/models/gpt-9").status_code == 404
    assert core.submitted == []


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"content-type": "text/plain"}, b'{"prompt": "x"}'),
        ({}, b'{"prompt": "x"}'),
        ({"content-type": "application/x-www-form-urlencoded"}, b'{"prompt": "x"}'),
        (JSON | {"content-encoding": "gzip"}, gzip.compress(b" " * 10**7)),
    ],
)
def test_other_media_are_415(open_desk, headers, content):
    assert call(open_desk, "POST", COMPLETIONS, content=content, headers=headers).status_code == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", COMPLETIONS, 405),
        ("PUT", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/../metrics", 404),
        ("GET", "/v1%2fmodels", 404),
        ("GET", "/%6detrics", 404),
        ("GET", "/nothing", 404),
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics", 200),
        ("GET", "/health", 200),
        ("GET", "/ping", 200),
        ("GET", "/version", 200),
    ],
)
def test_paths_and_methods(open_http, method, path, status):
    async def run():
        async with open_http() as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.http_port)
            writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            raw = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return raw

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    if status >= 400:
        assert json.loads(body)["error"]["message"]
    if status == 405:
        assert b"\r\nallow: " in head.lower()


def test_ready_follows_the_core_and_the_drain(core, open_desk):
    core.not_ready = "no decode worker is up (decode-0 lost)"
    ready, health = call(open_desk, "GET", "/ready"), call(open_desk, "GET", "/health")
    assert ready.status_code == 503
    assert ready.json() == {"status": "not ready", "reason": "no decode worker is up (decode-0 lost)"}
    assert health.status_code == 200, "the process is alive"
    assert health.json() == {"status": "ok", "ready": False, "reason": "no decode worker is up (decode-0 lost)"}
    core.not_ready = ""
    ready, health = call(open_desk, "GET", "/ready"), call(open_desk, "GET", "/health")
    assert ready.status_code == 200 and ready.json() == {"status": "ready"}
    assert health.json() == {"status": "ok"}

    async def drained():
        desk = open_desk()
        desk.drain()
        transport = httpx.ASGITransport(app=build_app(desk))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/ready")).status_code == 503
            return await client.post(COMPLETIONS, json={"prompt": "x"})

    response = asyncio.run(drained())
    assert response.status_code == 503 and "retry-after" in response.headers
    assert core.submitted == []


def raw_exchange(open_http, pieces, limits=None):
    """Send bytes as they are over a socket; what comes back until the server closes."""

    async def run():
        async with open_http(limits=limits) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.http_port)
            for piece in pieces:
                writer.write(piece)
            raw = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return raw, (await door.http.post(COMPLETIONS, json={"prompt": "x"})).status_code

    raw, others = asyncio.run(run())
    assert others == 200  # other clients are served on
    return int(raw.split()[1])


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_body_beyond_the_limit_is_413_with_and_without_its_length(open_http):
    limits = {"max_message_bytes": 1000}
    assert raw_exchange(open_http, [HEAD + b"content-length: 100000000\r\n\r\n"], limits) == 413
    chunks = [b"3e8\r\n" + b" " * 1000 + b"\r\n"] * 3  # and it never ends
    assert raw_exchange(open_http, [HEAD + b"transfer-encoding: chunked\r\n\r\n", *chunks], limits) == 413


def test_a_body_that_does_not_come_is_408(open_http):
    pieces = [HEAD + b"content-length: 100\r\n\r\n", b'{"prompt"']
    assert raw_exchange(open_http, pieces, {"body_timeout_s": 0.1}) == 408


@pytest.mark.parametrize("extra", [b"x-big: " + b"a" * 65536 + b"\r\n", b"x: y\r\n" * 10_000])
def test_large_headers_are_431(open_http, extra):
    request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + extra + b"\r\n"
    assert raw_exchange(open_http, [request]) == 431


def test_the_key_is_asked_for_everywhere_but_for_health(core, open_desk):
    async def run():
        transport = httpx.ASGITransport(app=build_app(open_desk(api_keys={"sesame": ""})))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"prompt": "x"}
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}):
                for path in ("/v1/models", "/metrics", "/version", "/nothing"):
                    assert (await client.get(path, headers=headers)).status_code == 401
                response = await client.post(COMPLETIONS, json=body, headers=headers)
                assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
            assert (await client.post(COMPLETIONS + "?api_key=sesame", json=body)).status_code == 401
            assert core.submitted == []
            for path in ("/health", "/ready"):
                assert (await client.get(path)).status_code == 200
            good = {"authorization": "Bearer sesame"}
            return (await client.post(COMPLETIONS, json=body, headers=good)).status_code

    assert asyncio.run(run()) == 200


def test_a_bug_shows_nothing_of_itself(core, open_http):
    def broken(request):
        raise KeyError("/secret/path")

    core.script = broken

    async def run():
        async with open_http() as door:
            return await door.http.post(COMPLETIONS, json={"prompt": "x"})

    response = asyncio.run(run())
    assert response.status_code == 500 and response.json()["error"]["message"] == "internal error"


def test_a_chat_without_a_template_says_so(core, card, model_directory):
    from transformers import AutoTokenizer

    from pdserve.clock import MonotonicClock
    from router.generation import FrontDesk
    from router.limits import FrontConfig
    from router.text.tokenizer import Tokenizer

    hf = AutoTokenizer.from_pretrained(model_directory)
    hf.chat_template = None

    async def run():
        desk = FrontDesk(core, card, Tokenizer(hf), FrontConfig(), MonotonicClock())
        transport = httpx.ASGITransport(app=build_app(desk))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(CHAT, json={"messages": HELLO})

    response = asyncio.run(run())
    assert response.status_code == 400 and "no chat template" in response.json()["error"]["message"]


def test_an_id_that_no_header_can_carry_is_refused_as_any_other(open_http, core):
    """It is never shown; in logs and traces half a surrogate, which is JSON and no UTF-8, is a question mark."""

    async def run():
        async with open_http() as door:
            for name in (r"a\ud800", r"a\r\nx-evil: 1", "é", "a" * 100_000):
                body = f'{{"prompt": "x", "request_id": "{name}"}}'.encode()
                answer = await door.http.post(COMPLETIONS, content=body, headers=JSON)
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "request_id")
                assert "x-evil" not in answer.headers and len(answer.headers["x-request-id"]) < 64

    asyncio.run(run())
    assert [len(request.request_id) for request, _ in core.rejected] == [2, 12, 1, 128]
    assert core.rejected[0][0].request_id == "a?"
