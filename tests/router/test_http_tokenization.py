"""/tokenize and /detokenize, as vLLM's users call them."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from deploy.models.byte_bpe import BOS_ID, IM_START_ID
from router.http_front import build_app
from router.prompts import MAX_INLINE_IDS, TOKENIZER_THREADS

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


def test_they_take_places_among_the_requests_and_long_ones_leave_the_loop_alone(open_desk):
    """One too many is refused, and so is everyone while the server drains."""
    long = {"tokens": [5] * (MAX_INLINE_IDS + 1)}

    async def run():
        desk, go_on = open_desk(limits={"max_concurrent_requests": 2, "max_inline_chars": 0}), threading.Event()
        transport = httpx.ASGITransport(app=build_app(desk))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(TOKENIZER_THREADS):
                desk.prompts._threads.submit(go_on.wait, 10.0)
            waiting = [
                group.create_task(client.post("/tokenize", json={"prompt": "x"})),
                group.create_task(client.post("/detokenize", json=long)),
            ]
            while desk._num_running < 2:  # noqa: ASYNC110 - nothing rings when a place is taken
                await asyncio.sleep(0)
            full = [await client.post("/tokenize", json={"prompt": "x"}), await client.post("/detokenize", json=long)]
            assert not any(one.done() for one in waiting)
            go_on.set()
            answers = [await one for one in waiting]
            spelled = await client.post("/tokenize", json={"prompt": "x" * 200, "return_token_strs": True})
            desk.drain()
            drained = await client.post("/tokenize", json={"prompt": "x"})
        desk.close()
        return full, answers, spelled, drained

    full, answers, spelled, drained = asyncio.run(run())
    assert [one.status_code for one in (*full, *answers, spelled, drained)] == [429, 429, 200, 200, 200, 503]
    assert "2 requests are running" in full[0].json()["error"]["message"] and "retry-after" in full[0].headers


def test_tokenizing_has_a_deadline(open_desk):
    """As everything that waits."""

    async def run():
        desk, go_on = open_desk(limits={"default_deadline_s": 0.05, "max_inline_chars": 0}), threading.Event()
        transport = httpx.ASGITransport(app=build_app(desk))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in range(TOKENIZER_THREADS):
                desk.prompts._threads.submit(go_on.wait, 10.0)
            answer = await client.post("/tokenize", json={"prompt": "x"})
            go_on.set()
        desk.close()
        return answer

    answer = asyncio.run(run())
    assert answer.status_code == 504 and "deadline of 0.05 s" in answer.json()["error"]["message"]
