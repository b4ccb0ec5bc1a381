"""Tools: described to the template, called in the answer's text, shown as OpenAI shows calls."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.models.byte_bpe import CHAT_TEMPLATE, IM_END_ID, write_tokenizer
from pdserve.errors import RequestError
from router.http_front.tool_choice import calls_only
from router.text import TOOL_CALL_PARSERS, CalledTool, load_tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather<|im_end|>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
BARE = {"type": "function", "function": {"name": "weather"}}
ASK = [{"role": "user", "content": "Weather in Rome?"}]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}"
    + CHAT_TEMPLATE
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome é"}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Its template has a place for tools."""
    directory = tmp_path_factory.mktemp("tools")
    write_tokenizer(directory, 512, 256, add_bos=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return load_tokenizer(directory)


def with_client(open_http, use, parser="hermes"):
    async def run():
        async with open_http(tool_call_parser=parser) as doors:
            url = f"http://127.0.0.1:{doors.http_port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                return await use(client)

    return asyncio.run(run())


def says(core, tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    core.script = lambda request: [[token] for token in ids]


def test_a_call_whole_and_streamed(core, open_http, tokenizer):
    says(core, tokenizer, f"Let me see. {CALL}\n{CALL}")

    async def use(client):
        asked = {"model": "tiny", "messages": ASK, "tools": [BARE]}
        (whole,) = (await client.chat.completions.create(**asked)).choices
        assert whole.finish_reason == "tool_calls" and whole.message.content == "Let me see. "
        assert [json.loads(call.function.arguments) for call in whole.message.tool_calls] == [{"city": "Rome é"}] * 2
        assert len({call.id for call in whole.message.tool_calls}) == 2
        (alone,) = (await client.chat.completions.create(**asked, parallel_tool_calls=False)).choices
        assert len(alone.message.tool_calls) == 1
        async with client.chat.completions.stream(**asked) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
        assert streamed.finish_reason == "tool_calls" and streamed.message.content == "Let me see. "
        calls = [(call.function.name, call.function.arguments) for call in streamed.message.tool_calls]
        assert calls == [("weather", '{"city": "Rome é"}')] * 2

    with_client(open_http, use)


def test_the_model_is_told_of_tools_and_of_what_they_said(core, open_http, tokenizer):
    async def use(client):
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
        turns = [
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
        for choice in ("auto", "none"):
            await client.chat.completions.create(
                model="tiny", messages=turns, tools=[WEATHER], tool_choice=choice, max_tokens=1
            )

    with_client(open_http, use)
    auto, none = (request.prompt_token_ids for request in core.submitted)
    text = tokenizer.decode(auto, skip_special_tokens=False)
    assert '"name": "weather"' in text and '{"city": "Rome"}' in text and "sunny" in text
    assert "Tells the weather" not in tokenizer.decode(none, skip_special_tokens=False)
    # What a tool's description spells is no special token.
    assert auto.count(IM_END_ID) == none.count(IM_END_ID) + 1


def test_what_tools_need_is_named(core, open_http, tokenizer):
    async def use(client):
        for choice in ("maybe", {"type": "function", "function": {"name": "wether"}}, {"type": "x"}):
            with pytest.raises(openai.BadRequestError, match="tool_choice"):
                await client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER], tool_choice=choice)
        with pytest.raises(openai.BadRequestError, match="needs tools"):
            await client.chat.completions.create(model="tiny", messages=ASK, tool_choice="required")
        with pytest.raises(openai.BadRequestError, match=r"response_format.* and tool_choice"):
            await client.chat.completions.create(
                model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required",
                response_format={"type": "json_object"},
            )  # fmt: skip

    with_client(open_http, use)

    async def without(client):
        with pytest.raises(openai.BadRequestError, match="--tool-call-parser"):
            await client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER])

    with_client(open_http, without, parser=None)


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")])
def test_a_forced_choice_is_a_constraint_and_needs_no_parser(core, open_http, tokenizer, choice, reason):
    says(core, tokenizer, '[{"name": "weather", "parameters": {"city": "Rome"}}]')
    now = {"type": "function", "function": {"name": "now"}}

    async def use(client):
        asked = {"model": "tiny", "messages": ASK, "tools": [BARE, now], "tool_choice": choice, "max_tokens": 80}
        (whole,) = (await client.chat.completions.create(**asked)).choices
        async with client.chat.completions.stream(**asked) as stream:
            (streamed,) = (await stream.get_final_completion()).choices
        for made in (whole, streamed):
            assert made.finish_reason == reason and not made.message.content
            (call,) = made.message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
        (cut,) = (await client.chat.completions.create(**{**asked, "max_tokens": 5})).choices
        assert cut.finish_reason == "length" and cut.message.content and not cut.message.tool_calls

    with_client(open_http, use, parser=None)
    schema = json.loads(core.submitted[0].sampling.constraint.text)
    names = [one["properties"]["name"]["const"] for one in schema["items"]["anyOf"]]
    assert names == (["weather", "now"] if choice == "required" else ["weather"])
    assert schema.get("maxItems") == (None if choice == "required" else 1)


# ---- the formats ----

ROME = ("weather", {"city": "Rome"})
FORMATS = [
    ("hermes", "no call <tool> here <", "no call <tool> here <", []),
    ("hermes", 'a<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>', "a", [ROME]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}', "", [ROME]),  # cut at the end
    ("hermes", '<tool_call>{"name": "wea', '<tool_call>{"name": "wea', []),
    ("hermes", "<tool_call>nonsense</tool_call>b", "<tool_call>nonsense</tool_call>b", []),
    ("hermes", '<tool_call>{"name": 1, "arguments": {}}</tool_call>', None, []),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>\n', "", [ROME]),
    ("llama3_json", ' {"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
    ("llama3_json", '{"name": "weather", "parameters": {"city": "Rome"}}; {"name": "now", "parameters": {}}', "",
     [ROME, ("now", {})]),
    ("llama3_json", 'Use {"name": "weather", "parameters": {}}', None, []),
    ("llama3_json", '{"city": "Rome"}', None, []),
    ("llama3_json", '{"name": "weather", "parameters"', None, []),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
    ("mistral", 'I see[TOOL_CALLS]weather{"city": "Rome"}[TOOL_CALLS]now[ARGS]{}', "I see", [ROME, ("now", {})]),
    ("mistral", 'weather[CALL_ID]{"city": "Rome"}', None, []),
    ("mistral", "[TOOL_CALLS]nothing", None, []),
]  # fmt: skip


def parsed(name, text, cuts):
    """The text given in pieces that end at `cuts`."""
    parser = TOOL_CALL_PARSERS[name]()
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [piece for start, end in itertools.pairwise(edges) for piece in parser.push(text[start:end])]
    pieces += parser.flush()
    calls = [piece for piece in pieces if isinstance(piece, CalledTool)]
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    return said, [(call.name, json.loads(call.arguments)) for call in calls], [call.id for call in calls]


@pytest.mark.parametrize(("name", "text", "said", "calls"), FORMATS)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=8))
def test_calls_are_found_however_the_text_is_cut(name, text, said, calls, cuts):
    """None for what is said: no call, all of it is text."""
    found_said, found_calls, ids = parsed(name, text, cuts)
    assert (found_said, found_calls) == (text if said is None else said, calls)
    assert all(ids) and len(set(ids)) == len(ids)
    if name == "mistral":
        assert all(len(one) == 9 and one.isalnum() for one in ids)


def test_forced_arguments_are_an_object_whatever_the_tool_leaves_open() -> None:
    """Any other value would not be a call; a tool that asks for one is refused."""

    def forced(parameters: object) -> dict[str, Any]:
        schema = json.loads(calls_only([{"function": {"name": "f", "parameters": parameters}}], None).text)
        found: dict[str, Any] = schema["items"]["anyOf"][0]["properties"]["parameters"]
        return found

    assert forced({"properties": {"a": {}}}) == {"type": "object", "properties": {"a": {}}}
    assert forced(None) == {"type": "object"}
    for parameters, words in (({"type": "array"}, "type object"), ({"$defs": 5}, "an object")):
        with pytest.raises(RequestError, match=words) as caught:
            forced(parameters)
        assert caught.value.field == "tools"
