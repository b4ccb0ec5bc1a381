"""/tokenize and /detokenize, as vLLM's users call them."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from deploy.models.byte_bpe import BOS_ID, IM_START_ID
from router.http_front import build_app

HELLO = [{"role": "user", "content": "hello"}]


def post(open_desk, path, body):
    async def run():
        desk = open_desk()
        try:
            transport = httpx.ASGITransport(app=build_app(desk))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post(path, json=body)
        finally:
            desk.close()

    return asyncio.run(run())


def test_text_to_ids_and_back(open_desk, tokenizer, card):
    body = post(open_desk, "/tokenize", {"model": "tiny", "prompt": "say é", "return_token_strs": True}).json()
    assert body["tokens"] == tokenizer.encode("say é") and body["tokens"][0] == BOS_ID
    assert body["count"] == len(body["tokens"]) and body["max_model_len"] == card.max_model_len
    assert body["token_strs"] == [tokenizer.token(i) for i in body["tokens"]]
    assert post(open_desk, "/detokenize", {"tokens": body["tokens"]}).json() == {"prompt": "<|bos|>say é"}
    plain = post(open_desk, "/tokenize", {"prompt": "say é", "add_special_tokens": False}).json()
    assert plain["tokens"] == body["tokens"][1:] and plain["token_strs"] is None
    assert post(open_desk, "/tokenize", {"prompt": ""}).json()["count"] == 0
    assert post(open_desk, "/detokenize", {"tokens": []}).json() == {"prompt": ""}


def test_a_conversation_is_tokenized_as_it_would_be_served(core, open_desk):
    served = post(open_desk, "/v1/chat/completions", {"messages": HELLO})
    assert served.status_code == 200
    ids = list(core.submitted[0].prompt_token_ids)
    assert post(open_desk, "/tokenize", {"messages": HELLO}).json()["tokens"] == ids
    closed = post(open_desk, "/tokenize", {"messages": HELLO, "add_generation_prompt": False}).json()["tokens"]
    assert closed == ids[: len(closed)] and IM_START_ID in ids[len(closed) :]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "x", "stream": True}, "stream"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": HELLO, "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": "x" * 100_000}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1, 512]}, "tokens[1]"),
        ("/detokenize", {"tokens": [0] * 131_073}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(open_desk, path, body, param):
    response = post(open_desk, path, body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert len(response.json()["error"]["message"]) < 200


def test_another_model_is_404(open_desk):
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})):
        assert post(open_desk, path, {"model": "gpt-9", **body}).status_code == 404
