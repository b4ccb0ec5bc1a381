"""Clients that know nothing of pdserve, against a live cluster: the openai package, curl, gRPC by reflection."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "deploy/models/demo"
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": CITY | {"additionalProperties": False}},
}
SERVED_AT = "localhost:8000"


@pytest.fixture(scope="module")
def server(serve_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The demo model, told of tools by its template."""
    directory = tmp_path_factory.mktemp("clients")
    model = directory / "demo"
    shutil.copytree(DEMO, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}" + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    flags = ("--served-model-name", "demo", "--dtype", "float32", "--threads", "1")
    with serve_in(directory, model, *flags, "--tool-call-parser", "hermes") as running:
        yield running


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.ready['http']}/v1", api_key="none", max_retries=0) as made:
        yield made


# ---- the openai package ----


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "demo" and client.models.retrieve("demo") == model


def test_completions_in_every_form_of_prompt(client: openai.OpenAI) -> None:
    greedy: Any = {"model": "demo", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(prompt="import os", **greedy)
    assert whole.usage is not None and whole.usage.completion_tokens == 6
    ids = client.post("/../tokenize", body={"prompt": "import os"}, cast_to=object)["tokens"]  # type: ignore[index]
    prompts: list[Any] = ["import os", ["import os"], ids, [ids, ids]]
    for prompt in prompts:
        made = client.completions.create(prompt=prompt, **greedy)
        assert {choice.text for choice in made.choices} == {whole.choices[0].text}
    echoed = client.completions.create(prompt="import os", echo=True, **greedy)
    assert echoed.choices[0].text == "import os" + whole.choices[0].text
    stop = whole.choices[0].text[3:5]
    stopped = client.completions.create(prompt="import os", stop=stop, **greedy).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == whole.choices[0].text.partition(stop)[0]


def test_a_stream_says_what_the_whole_says_and_counts_as_it_goes(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "prompt": "def main(", "max_tokens": 12, "temperature": 0.8, "seed": 5, "n": 2}
    whole = client.completions.create(**asked)
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    texts, counts = ["", ""], []
    for part in client.completions.create(stream=True, stream_options=options, **asked):
        assert part.usage is not None
        counts.append(part.usage.completion_tokens)
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices] and texts[0] != texts[1]
    assert counts == sorted(counts) and counts[-1] == whole.usage.completion_tokens == 24  # type: ignore[union-attr]


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": HELLO, "max_completion_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(logprobs=True, top_logprobs=2, **asked)
    entries = whole.choices[0].logprobs.content  # type: ignore[union-attr]
    assert entries is not None and len(entries) == whole.usage.completion_tokens  # type: ignore[union-attr]
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)  # greedy: the likeliest
    stream = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    *parts, last = list(stream)
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]
    several = client.chat.completions.create(n=3, **asked)
    assert [choice.message.content for choice in several.choices] == [whole.choices[0].message.content] * 3


def test_sampling_fields_that_others_define(client: openai.OpenAI) -> None:
    extra = {"top_k": 3, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 4}
    made = client.completions.create(
        model="demo", prompt="x", max_tokens=4, seed=1, logit_bias={"70": 100}, presence_penalty=0.1, user="me",
        frequency_penalty=0.1, extra_body={**extra, "return_token_ids": True},
    )  # fmt: skip
    assert made.choices[0].model_extra is not None and made.choices[0].model_extra["token_ids"] == [70] * 4


def test_answers_that_have_to_be_json(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["size", "count"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema}}
    made = client.chat.completions.create(model="demo", messages=HELLO, response_format=form, max_tokens=600)
    order = json.loads(made.choices[0].message.content or "")
    assert set(order) == {"size", "count"} and order["size"] in ("small", "large") and 0 <= order["count"] <= 99


def test_tools_that_are_offered_and_tools_that_must_be_called(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": HELLO, "tools": [WEATHER]}
    free = client.chat.completions.create(max_tokens=20, **asked).choices[0]
    assert free.message.content and free.finish_reason in ("stop", "length")  # it never learned to call
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        made = client.chat.completions.create(
            tool_choice=choice, parallel_tool_calls=False, max_tokens=600, **asked
        ).choices[0]
        assert made.message.tool_calls is not None
        (call,) = made.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "weather" and arguments["city"] in ("Rome", "Oslo")
    answered = [*HELLO, made.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert client.chat.completions.create(max_tokens=5, **asked | {"messages": answered}).choices


def test_errors_are_the_clients_own_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="demo", prompt="x", suffix="y")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=HELLO, max_tokens=10**6)
    assert caught.value.param == "max_tokens" and caught.value.request_id
    with pytest.raises(openai.BadRequestError, match="none of the tools"):
        choice: Any = {"type": "function", "function": {"name": "other"}}
        client.chat.completions.create(model="demo", messages=HELLO, tools=[WEATHER], tool_choice=choice)


# ---- curl, as the documentation writes it ----


def curl_examples(text: str) -> list[str]:
    """Every command of a document that begins with curl, with the lines that continue it."""
    return [match[0] for match in re.finditer(r"(?m)^ *curl (?:[^'\\\n]|\\\n|'[^']*')*$", text)]


@pytest.mark.parametrize("document", ["README.md", "docs/http.md"])
def test_the_documents_curl_commands_work_as_they_are_written(server: Any, document: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    examples = curl_examples(text)
    assert len(examples) == len(re.findall(r"(?m)^ *curl ", text)) >= 2
    for example in examples:
        assert SERVED_AT in example
        command = example.replace(SERVED_AT, server.ready["http"])
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        if '"stream": true' in example:
            *events, end = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
            assert end == "[DONE]" and all("choices" in json.loads(event) for event in events), done.stdout
        elif "/metrics" in example:
            assert "pdserve_" in done.stdout
        else:
            assert "error" not in json.loads(done.stdout), done.stdout


# ---- gRPC without stubs ----


def test_a_client_that_learns_the_service_by_reflection(server: Any) -> None:
    with grpc.insecure_channel(server.ready["grpc"]) as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        assert set(known.get_services()) >= {"pdserve.v1.InferenceService", "grpc.health.v1.Health"}
        service = DescriptorPool(known).FindServiceByName("pdserve.v1.InferenceService")
        method = service.FindMethodByName("Generate")
        assert method.server_streaming and not method.client_streaming
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = channel.unary_stream(
            f"/{service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        *chunks, end = list(call(request(text="import os", max_tokens=5), timeout=30))
    assert [token for part in chunks for token in part.chunk.token_ids] == list(end.complete.token_ids)
    assert len(end.complete.token_ids) == 5 and end.complete.usage.completion_tokens == 5
