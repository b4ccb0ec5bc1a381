"""What a request may say of its text: prompts shown and cut, special tokens, stops, the template's switches."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from deploy.models.byte_bpe import BOS_ID, IM_END, IM_END_ID, IM_START_ID

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def post(open_http, path, body, **config):
    async def run():
        async with open_http(**config) as doors:
            return await doors.http.post(path, json=body)

    response = asyncio.run(run())
    assert response.status_code == 200, response.text
    return response


def text_of(response, stream):
    """The answer's text, whole or put together."""
    if not stream:
        return response.json()["choices"][0]["text"]
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "one two"),
        ({"skip_special_tokens": False}, "one<|im_start|> two"),
        ({"include_stop_str_in_output": True}, "one two"),  # the end is a special token, which is not shown
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, "one<|im_start|> two<|im_end|>"),
        ({"stop": ["tw", "two"]}, "one "),
        ({"stop": ["tw", "two"], "include_stop_str_in_output": True}, "one tw"),
        ({"echo": True}, "say: one two"),
        ({"echo": True, "prompt": [BOS_ID, 70, 71]}, "cdone two"),
        ({"echo": True, "prompt": [BOS_ID, 70, 71], "skip_special_tokens": False}, "<|bos|>cdone<|im_start|> two"),
        ({"echo": True, "prompt": [68, 70, 71], "truncate_prompt_tokens": 2}, "cdone two"),
    ],
)
def test_what_the_text_shows(core, open_http, tokenizer, stream, options, expected):
    one, two = tokenizer.encode("one")[1:], tokenizer.encode(" two")[1:]
    core.script = lambda request: [one, [IM_START_ID], two, [IM_END_ID]]
    body = {"prompt": "say: ", "max_tokens": 50, "stream": stream, **options}
    assert text_of(post(open_http, COMPLETIONS, body), stream) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_is_decoded_once_and_a_long_one_beside_the_loop(open_http, tokenizer, monkeypatch, stream):
    """However many choices continue it."""
    prompt, decoded = [70] * 9, []
    decode = tokenizer.decode

    def watched(ids, **options):
        if len(ids) == len(prompt):
            decoded.append(threading.current_thread().name)
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", watched)
    monkeypatch.setattr("router.prompts.MAX_INLINE_IDS", 4)
    body = {"prompt": prompt, "echo": True, "n": 3, "max_tokens": 8, "stream": stream}
    text = post(open_http, COMPLETIONS, body).text
    assert text.count("c" * 9) == 3
    assert len(decoded) == 1 and decoded[0].startswith("tokenizer")


def test_a_prompt_that_is_cut_keeps_its_end(core, open_http, card):
    ids = list(range(100, 400))
    post(open_http, COMPLETIONS, {"prompt": ids, "truncate_prompt_tokens": 5})
    post(open_http, COMPLETIONS, {"prompt": ids, "truncate_prompt_tokens": -1, "max_tokens": 56})
    post(open_http, CHAT, {"messages": HELLO, "truncate_prompt_tokens": 3})
    five, most, chat = (list(request.prompt_token_ids) for request in core.submitted)
    assert five == ids[-5:] and most == ids[-(card.max_model_len - 56) :] and len(chat) == 3


def test_bos_is_left_out_of_text_or_added_to_a_chat_when_asked(core, open_http):
    post(open_http, COMPLETIONS, {"prompt": "abc", "add_special_tokens": False})
    post(open_http, CHAT, {"messages": HELLO, "add_special_tokens": True})
    text, chat = (request.prompt_token_ids for request in core.submitted)
    assert BOS_ID not in text and chat[:2] == (BOS_ID, BOS_ID)  # the template writes one itself


@pytest.mark.parametrize("content", ["The answer is", f"spelled {IM_END} and <"])
def test_the_last_message_is_continued(core, open_http, tokenizer, content):
    turns = [*HELLO, {"role": "assistant", "content": content}]
    post(open_http, CHAT, {"messages": turns, "continue_final_message": True, "add_generation_prompt": False})
    post(open_http, CHAT, {"messages": turns, "add_generation_prompt": False})
    continued, closed = (request.prompt_token_ids for request in core.submitted)
    assert tokenizer.decode(continued, skip_special_tokens=False).endswith("<|im_start|>assistant\n" + content)
    assert continued == closed[: len(continued)] and IM_END_ID in closed[len(continued) :]


def test_the_prompts_ids_come_beside_the_answers(core, open_http, tokenizer):
    body = post(open_http, COMPLETIONS, {"prompt": "ab", "return_token_ids": True}).json()
    assert body["choices"][0]["prompt_token_ids"] == tokenizer.encode("ab")
    body = post(open_http, CHAT, {"messages": HELLO, "return_token_ids": True}).json()
    assert body["prompt_token_ids"] == list(core.submitted[-1].prompt_token_ids)


def test_tokens_of_logprobs_are_shown_as_ids_when_asked(core, open_http):
    body = {"prompt": "x", "logprobs": 1, "return_tokens_as_token_ids": True}
    logprobs = post(open_http, COMPLETIONS, body).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{n}" for n in range(100, 104)]
