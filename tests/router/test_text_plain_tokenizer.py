"""A tokenizer read without transformers is the one that transformers makes, or is left to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.models.byte_bpe import write_tokenizer
from router.text import ChatMessage, ChatOptions, ChatTemplateError, load_tokenizer
from router.text.plain_tokenizer import try_load_plain
from router.text.tokenizer import Tokenizer, load_with_transformers

TEXTS = ("plain words", "é漢\U0001f600", "a<|im_start|>b<|endoftext|>", "<|bos|>x", "<|bos|><|bos|>x", "  two\n\n", "")
CHATS = (
    [ChatMessage("user", "what is 2 < 3? é")],
    [ChatMessage("system", "be brief"), ChatMessage("user", "a<|im_end|>"), ChatMessage("assistant", ' "q" ', "n")],
)
TOOL = {"type": "function", "function": {"name": "f", "description": "é<|im_end|>", "parameters": {"type": "object"}}}
OPTIONS = (
    ChatOptions(),
    ChatOptions(tools=(TOOL,), template_arguments={"thinking": True, "style": "<|im_start|>"}),
    ChatOptions(add_generation_prompt=False, add_special_tokens=True),
    ChatOptions(add_generation_prompt=False, continue_final_message=True),
)
LLAMA_LIKE = (
    "{{- bos_token }}{%- set ns = namespace(n=0) %}\n"
    "{%- for m in messages if m.role != 'tool' %}\n  {%- set ns.n = ns.n + 1 %}\n"
    "{{- '<|im_start|>' ~ m['role'] ~ (m.name | default('')) ~ ns.n ~ dict(a=1)['a'] }}{{ m.content | trim | tojson }}"
    "\n{%- if loop.last %}{% break %}{% endif %}{% endfor %}{{ tools is none }}{{ tools | tojson }}"
    "{{ thinking }}{{ style }}{{ eos_token }}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}\n"
)


def write(directory: Path, model_type="llama", config=None, add_bos=True) -> Path:
    """A checkpoint's tokenizer; `config` changes tokenizer_config.json, None removes a field."""
    write_tokenizer(directory, 512, 256, add_bos=add_bos)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    file = directory / "tokenizer_config.json"
    merged = json.loads(file.read_text()) | (config or {})
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))
    return directory


def declared(directory: Path) -> dict[str, object]:
    """tokenizer.json's added tokens as newer checkpoints repeat them."""
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    return {str(token.pop("id")): token for token in added}


def assert_same(plain: Tokenizer, theirs: Tokenizer) -> None:
    for text in TEXTS:
        ids = theirs.encode(text)
        assert plain.encode(text) == ids
        for skip in (True, False):
            assert plain.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert plain.bos_token_id == theirs.bos_token_id and plain.has_chat_template == theirs.has_chat_template
    assert plain.max_token_chars == theirs.max_token_chars and plain.is_byte_level == theirs.is_byte_level
    assert [plain.token_text(n) for n in range(515)] == [theirs.token_text(n) for n in range(515)]
    for chat in CHATS if plain.has_chat_template else ():
        for options in OPTIONS:
            assert plain.encode_chat(chat, options) == theirs.encode_chat(chat, options)


def both(directory: Path) -> tuple[Tokenizer, Tokenizer]:
    plain = try_load_plain(directory)
    assert plain is not None
    return Tokenizer(plain), Tokenizer(load_with_transformers(directory))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_both_ways_give_the_same(tmp_path, model_type, add_bos):
    assert_same(*both(write(tmp_path, model_type, add_bos=add_bos)))


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "TokenizersBackend", "chat_template": LLAMA_LIKE},
        {"chat_template": None, "pad_token": None},
        {"unk_token": "<|endoftext|>", "padding_side": "left", "model_input_names": ["input_ids"]},
    ],
)
def test_both_ways_give_the_same_with_other_fields(tmp_path, config):
    assert_same(*both(write(tmp_path, config=config)))


def test_both_ways_give_the_same_with_declared_tokens_and_a_template_file(tmp_path):
    write(tmp_path)
    write(tmp_path, config={"added_tokens_decoder": declared(tmp_path)})
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "nonsense"}))  # old, not read
    (tmp_path / "chat_template.jinja").write_text(LLAMA_LIKE)
    assert_same(*both(tmp_path))


def test_both_ways_give_the_same_for_another_kind_of_backend(tmp_path):
    """Metaspace, no byte level, a normalizer."""
    write(
        tmp_path, config={"bos_token": "<s>", "eos_token": None, "pad_token": None, "additional_special_tokens": None}
    )
    vocab = [("<unk>", 0.0), ("▁", -1.0), ("▁a", -1.0), ("a", -2.0), ("<", -2.0), ("s", -2.0), (">", -2.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, 0))
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert_same(*both(tmp_path))


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40), st.lists(st.integers(0, 515), max_size=30))
def test_any_text_and_any_ids(plain_and_theirs, text, ids):
    plain, theirs = plain_and_theirs
    assert plain.encode(text) == theirs.encode(text)
    assert plain.decode(ids) == theirs.decode(ids)
    assert plain.encode_chat([ChatMessage("user", text)]) == theirs.encode_chat([ChatMessage("user", text)])


@pytest.fixture(scope="module")
def plain_and_theirs(tmp_path_factory):
    return both(write(tmp_path_factory.mktemp("both"), config={"chat_template": LLAMA_LIKE}))


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": None},
        {"add_bos_token": False},
        {"split_special_tokens": True},
        {"bos_token": "<|new|>"},
        {"bos_token": {"content": "<|bos|>", "lstrip": True}},
        {"additional_special_tokens": ["<|another|>"]},
        {"auto_map": {"AutoTokenizer": ["x.Y", None]}},
        {"chat_template": [{"name": "default", "template": "x"}]},
        {"chat_template": "{% generation %}x{% endgeneration %}"},
        {"chat_template": "{{ messages.__class__ }}"},
        {"chat_template": "{% if %}"},
        {"added_tokens_decoder": {}},
    ],
)
def test_what_transformers_would_change_is_left_to_it(tmp_path, config):
    assert try_load_plain(write(tmp_path, config=config)) is None


def test_families_and_files_that_are_not_plain_are_left_to_transformers(tmp_path):
    assert try_load_plain(write(tmp_path, "qwen2")) is None  # transformers knows better than the checkpoint
    assert try_load_plain(write(tmp_path, "mistral")) is None
    assert try_load_plain(write(tmp_path, config={"bos_token": None, "chat_template": "x"})) is not None
    (tmp_path / "added_tokens.json").write_text("{}")
    assert try_load_plain(tmp_path) is None
    (tmp_path / "added_tokens.json").unlink()
    for broken in ("{}", "{", '{"added_tokens": [], "model": 3}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        assert try_load_plain(tmp_path) is None
    assert try_load_plain(tmp_path / "nowhere") is None


def test_what_is_left_to_transformers_is_loaded_by_it(tmp_path):
    theirs = load_tokenizer(write(tmp_path, "qwen2"))
    assert theirs.decode(theirs.encode("some text")) == "some text"


def test_a_template_that_refuses_says_so(tmp_path):
    template = "{{ raise_exception('roles must alternate') }}"
    plain = load_tokenizer(write(tmp_path, config={"chat_template": template}))
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        plain.encode_chat([ChatMessage("user", "hi")])


def test_nothing_heavy_is_imported_for_a_plain_one(tmp_path):
    """What makes it quick."""
    code = (
        "import sys; from router.text import load_tokenizer; load_tokenizer(sys.argv[1])\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(tmp_path))], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
