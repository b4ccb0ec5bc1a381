"""Stop strings and text: the same however the tokens are cut."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from router.text import OutputText, StopMatcher
from router.text.tokenizer import Tokenizer

WORDS = ("ab", "é", "漢字", "\U0001f469\u200d\U0001f4bb", " the", "aab", "b", "\n", "xyz", "\ufffd")
texts = st.lists(st.sampled_from(WORDS), max_size=24).map("".join)
stops = st.lists(
    st.one_of(st.text(alphabet="abé漢\n", min_size=1, max_size=4), st.sampled_from(WORDS)), max_size=3, unique=True
)


def cut_at_stop(text, stops):
    """The straightforward oracle: one character more at a time, until the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        hit = [stop for stop in stops if text[:end].endswith(stop)]
        if hit:
            return text[: end - max(map(len, hit))], end
    return text, None


@given(texts, stops, st.data())
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text, stops, data):
    matcher = StopMatcher(stops)
    sent, rest, stopped = "", text, False
    while rest and not stopped:
        size = data.draw(st.integers(1, len(rest)))
        scan = matcher.push(rest[:size])
        rest = rest[size:]
        sent, stopped = sent + scan.text, scan.stopped
        expected, end = cut_at_stop(text, stops)
        assert expected.startswith(sent)  # nothing that is sent is ever taken back
    expected, end = cut_at_stop(text, stops)
    assert stopped == (end is not None)
    assert sent + ("" if stopped else matcher.flush()) == expected


def test_what_is_held_back_is_never_more_than_a_stop_string_could_need():
    matcher = StopMatcher(["abcd"])
    assert matcher.push("xxabc").text == "xx"
    assert matcher.push("x").text == "abcx"
    assert matcher.push("abab").text == "ab"
    assert matcher.push("cd").stopped


@settings(deadline=None)
@given(texts, stops, st.data())
def test_text_and_usage_do_not_depend_on_how_tokens_are_cut(tokenizer, text, stops, data):
    ids = tokenizer.encode(text)[1:]
    min_tokens = data.draw(st.integers(0, 4))
    expected, needed = one_token_at_a_time(tokenizer, ids, stops, min_tokens)
    output = OutputText(tokenizer.detokenizer(), stops, (), min_tokens)
    sent, start, stopped = "", 0, False
    while start < len(ids) and not stopped:
        size = data.draw(st.integers(1, len(ids) - start))
        delta = output.push(ids[start : start + size])
        assert delta.num_tokens <= size
        sent, stopped, start = sent + delta.text, delta.stopped, start + size
    if not stopped:
        last = output.flush()
        sent, stopped = sent + last.text, last.stopped
    assert (sent, output.num_tokens) == (expected, needed)


def one_token_at_a_time(tokenizer, ids, stops, min_tokens):
    """Decode everything anew at each token; a stop string counts if it ends in text that came with enough tokens."""
    seen = ""
    for count in range(1, len(ids) + 1):
        text = settled(tokenizer.decode(ids[:count]), tokenizer, ids[:count])
        for end in range(len(seen) + 1, len(text) + 1) if count >= min_tokens else ():
            hit = [stop for stop in stops if text[:end].endswith(stop)]
            if hit:
                return text[: end - max(map(len, hit))], count
        seen = text
    return tokenizer.decode(ids), len(ids)


def settled(text, tokenizer, ids):
    """Without the half character at the end: what the bytes so far are as UTF-8."""
    raw = b"".join(tokenizer.token_bytes(i) for i in ids)
    for cut in range(len(raw), max(-1, len(raw) - 4), -1):
        try:
            return raw[:cut].decode()
        except UnicodeDecodeError:
            continue
    return text


def test_no_stop_string_counts_before_min_tokens(tokenizer):
    ids = tokenizer.encode("a.b.c.d")[1:]
    dots = [n for n, i in enumerate(ids, start=1) if "." in tokenizer.decode([i])]
    output = OutputText(tokenizer.detokenizer(), ["."], (), min_tokens=dots[1])
    delta = output.push(ids)
    assert delta.stopped and delta.num_tokens == dots[1] and delta.text == "a.b"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 520), max_size=40))
def test_byte_level_parts_add_up_to_the_whole(tokenizer, ids):
    assert_parts_add_up(tokenizer, ids)


def assert_parts_add_up(tokenizer, ids):
    detokenizer = tokenizer.detokenizer()
    sent = ""
    whole = tokenizer.decode(ids)
    for token_id in ids:
        sent += detokenizer.push(token_id)
        assert whole.startswith(sent)
    assert sent + detokenizer.flush() == whole


def sentencepiece_like():
    """A BPE as Llama 2 has it: metaspace, bytes for what is not in the vocabulary, one leading space stripped."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc", "漢"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b"), ("b", "c")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return hf(backend)


def wordpiece():
    vocab = {piece: index for index, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", "a", "##b", "c", ".", "##'", "'"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    backend.decoder = tokenizers.decoders.WordPiece()
    return hf(backend, unk="[UNK]", bos="[CLS]", eos="[SEP]")


def metaspace():
    vocab = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -1.0), ("▁a", -1.0), ("a", -2.0), ("b", -2.0), ("▁▁", -3.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, 0))
    backend.decoder = tokenizers.decoders.Metaspace()
    return hf(backend, bos="</s>")


def hf(backend, unk="<unk>", bos="<s>", eos="</s>"):
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unk, bos_token=bos, eos_token=eos)
    return Tokenizer(fast)


@pytest.mark.parametrize("make", [sentencepiece_like, wordpiece, metaspace])
def test_other_decoders_parts_add_up_to_the_whole(make):
    tokenizer = make()
    size = tokenizer._backend.get_vocab_size()
    # Bytes of real characters, so that runs are valid now and then.
    euro = [tokenizer._backend.token_to_id(f"<0x{byte:02X}>") or 0 for byte in "€".encode()]
    piece = st.one_of(
        st.integers(0, size + 2).map(lambda i: [i]),
        st.integers(max(0, size - 9), size - 1).map(lambda i: [i]),
        st.just(euro),
    )

    @settings(deadline=None, max_examples=300)
    @given(st.lists(piece, max_size=30))
    def holds(pieces):
        assert_parts_add_up(tokenizer, [i for ids in pieces for i in ids])

    holds()


def test_the_decoder_of_a_real_file_is_read(tokenizer, model_directory):
    kind = json.loads((model_directory / "tokenizer.json").read_text())["decoder"]["type"]
    assert tokenizer.is_byte_level == (kind == "ByteLevel")
