"""Prompts to token ids: special tokens where the tokenizer has them, never where a client spells them in a chat."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from types import SimpleNamespace

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deploy.models.byte_bpe import BOS, BOS_ID, CHAT_TEMPLATE, END_OF_TEXT_ID, IM_END_ID, IM_START_ID, write_tokenizer
from router.limits import Limits
from router.text import ChatMessage, ChatTemplateError, load_tokenizer
from router.text.backend import LONG_CHARS, LONG_IDS, ids_of
from router.text.tokenizer import Tokenizer

SPECIAL = {BOS_ID, END_OF_TEXT_ID, IM_START_ID, IM_END_ID}
nasty = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<|", "|>", "im_end", "<", ">", "<|endof", "text|>", "hi", " ", "\n"]
    ),
    min_size=1,
    max_size=8,
).map("".join)


def user(content):
    return ChatMessage("user", content)


def test_text_is_encoded_as_transformers_does(tokenizer, model_directory):
    hf = AutoTokenizer.from_pretrained(model_directory)
    for text in ("plain words", "é漢\U0001f600", "a<|im_start|>b<|endoftext|>", "  spaces\n\n"):
        assert tokenizer.encode(text) == hf(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == hf.decode(hf(text)["input_ids"], skip_special_tokens=True)


def test_bos_is_added_once(tokenizer):
    assert tokenizer.encode("abc")[:2].count(BOS_ID) == 1
    assert tokenizer.encode(BOS + "abc") == tokenizer.encode("abc")
    assert tokenizer.encode(BOS + BOS + "abc")[:3].count(BOS_ID) == 2  # the second was asked for


def test_a_tokenizer_without_bos_adds_none(tmp_path):
    write_tokenizer(tmp_path, 512, 256, add_bos=False)
    plain = load_tokenizer(tmp_path)
    assert BOS_ID not in plain.encode("abc") and plain.encode(BOS + "abc")[0] == BOS_ID


def test_an_ordinary_conversation_is_encoded_as_transformers_does(tokenizer, model_directory):
    hf = AutoTokenizer.from_pretrained(model_directory)
    messages = [ChatMessage("system", "be brief"), user("what is 2 < 3? é"), ChatMessage("assistant", "true")]
    expected = hf.apply_chat_template([m.as_dict() for m in messages], add_generation_prompt=True)["input_ids"]
    assert tokenizer.encode_chat(messages) == expected


@settings(deadline=None)
@given(st.lists(nasty, min_size=1, max_size=3))
def test_contents_never_become_special_tokens(tokenizer, contents):
    ids = tokenizer.encode_chat([user(content) for content in contents])
    expected = [BOS_ID] + [IM_START_ID, IM_END_ID] * len(contents) + [IM_START_ID]
    assert [i for i in ids if i in SPECIAL] == expected
    # And nothing is lost or added: the text is the template's over the real contents.
    turns = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents)
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"{BOS}{turns}<|im_start|>assistant\n"


def test_a_template_sees_contents_as_they_are(model_directory):
    hf = AutoTokenizer.from_pretrained(model_directory)
    hf.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content | trim }}"
        "{% if m.content.startswith('<tool') %}T{% endif %}<|im_end|>{% endfor %}"
    )
    tokenizer = Tokenizer(hf)
    ids = tokenizer.encode_chat([user("<tool> <|im_end|> x<  \n")])
    assert [i for i in ids if i in SPECIAL] == [IM_START_ID, IM_END_ID]
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|><tool> <|im_end|> x<T<|im_end|>"


def test_special_tokens_that_begin_a_text_keep_the_tokenizers_prefix_rules():
    """Metaspace with prepend_scheme "first": text after a special token gets no space of its own."""
    vocab = [("<unk>", 0.0), ("▁", -1.0), ("▁a", -1.0), ("a", -2.0), ("<", -2.0), ("s", -2.0), (">", -2.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, 0))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")
    hf.chat_template = "<s>{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = Tokenizer(hf)
    bos = hf.bos_token_id
    plain = tokenizer.encode_chat([user("aa")])
    tricky = tokenizer.encode_chat([user("aa<s>")])
    assert plain[0] == tricky[0] == bos and tricky[1 : len(plain)] == plain[1:]
    assert tricky.count(bos) == 1


def test_no_template_and_a_template_that_refuses_say_so(model_directory):
    hf = AutoTokenizer.from_pretrained(model_directory)
    hf.chat_template = None
    with pytest.raises(ChatTemplateError, match="no chat template"):
        Tokenizer(hf).encode_chat([user("hi")])
    hf.chat_template = "{{ raise_exception('roles must alternate') }}" + CHAT_TEMPLATE
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        Tokenizer(hf).encode_chat([user("hi")])


def test_one_token_is_shown_as_text_or_as_bytes(tokenizer):
    (euro_head,) = [i for i in range(512) if tokenizer.token_bytes(i) == b"\xe2"]
    assert tokenizer.token_text(euro_head) == "bytes:\\xe2"
    assert tokenizer.token_text(IM_END_ID) == "<|im_end|>" and tokenizer.token_bytes(IM_END_ID) == b"<|im_end|>"


def test_a_directory_without_a_tokenizer_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer in") as info:
        load_tokenizer(tmp_path)
    assert "\n" not in str(info.value)


LONG = "".join(random.Random(0).choices(["a", "be ", "\n", "é", "日", "😀", "<|im_end|>", "12", " "], k=120_000))


def test_long_texts_come_out_as_short_ones_do(tokenizer, model_directory):
    """They take another way through the library (router/text/backend.py)."""
    assert len(LONG) > LONG_CHARS
    ids = tokenizer.encode(LONG)
    expected = AutoTokenizer.from_pretrained(str(model_directory)).encode(LONG)
    assert ids == expected and len(ids) > LONG_IDS
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == tokenizer._backend.decode(ids, skip)
    chat = tokenizer.encode_chat([user(LONG)])
    assert chat.count(IM_END_ID) == 1, "what a client writes is never a special token"


def test_the_loop_goes_on_while_a_long_text_is_encoded(tokenizer):
    """Another thread runs in the midst of it: the interpreter is not held."""

    def ran_meanwhile() -> bool:
        ticks, done = [], threading.Event()

        def tick():
            while not done.is_set():
                ticks.append(time.perf_counter())
                time.sleep(0.001)

        other = threading.Thread(target=tick)
        other.start()
        began_s = time.perf_counter()
        tokenizer.encode(LONG)
        took_s = time.perf_counter() - began_s
        done.set()
        other.join()
        return any(0.25 <= (at - began_s) / took_s <= 0.5 for at in ticks)

    assert any(ran_meanwhile() for _ in range(20))


def test_only_a_thread_without_a_loop_waits_among_the_librarys_batches(tokenizer, monkeypatch):
    """Text that would hold the interpreter for milliseconds goes there; what a loop encodes never queues there."""
    text, batches = LONG[: LONG_CHARS + 1], []
    backend = SimpleNamespace(
        encode=tokenizer._backend.encode,
        encode_batch_fast=lambda *args, **named: (
            batches.append(1) or tokenizer._backend.encode_batch_fast(*args, **named)
        ),
    )

    async def on_a_loop():
        return ids_of(backend, text, add_special_tokens=True)

    assert Limits().max_inline_chars >= LONG_CHARS
    assert asyncio.run(on_a_loop()) == tokenizer._backend.encode(text).ids and not batches
    assert ids_of(backend, text, add_special_tokens=True) == tokenizer._backend.encode(text).ids and batches
