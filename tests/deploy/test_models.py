"""Made models load in transformers and wander; the demo model writes Python."""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from deploy.models import ARCHITECTURES, BadModelSpec, ModelSpec, demo_model_directory
from deploy.models.byte_bpe import END_OF_TEXT_ID, IM_END_ID
from deploy.models.make_model import add_arguments, main, make_model

PROMPTS = ("import os", "Once upon a time", "42")
ANY_TEXT = "def f(x):\n\treturn '☃ é 漢字 🐍'  # \x00\x7f\r\n"

# In the style of the standard library, but not from it.
UNSEEN_SOURCE = '''class TimerQueue:
    """A queue of timers, ordered by the time at which they expire.

    The *clock* argument is a callable that returns the current time.
    """

    def __init__(self, clock=None):
        if clock is None:
            clock = time.monotonic
        self._clock = clock
        self._timers = []

    def add(self, delay, callback):
        """Add a timer and return it. Raise ValueError if delay is negative."""
        if delay < 0:
            raise ValueError("delay must not be negative")
        timer = Timer(self._clock() + delay, callback)
        self._timers.append(timer)
        return timer
'''


@pytest.fixture(autouse=True)
def one_thread():
    """Other work shares the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def greedy(directory: Path, prompts: tuple[str, ...], num_tokens: int) -> list[list[int]]:
    """The ids that transformers itself generates after each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    texts = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens, eos_token_id=None
            )
        texts.append(out[0, ids.shape[1] :].tolist())
    return texts


def run(*arguments: str) -> int:
    """The exit code of `make-model` with these arguments."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(arguments))


def run_help() -> str:
    """What `make-model --help` says."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.format_help()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_loads_and_its_greedy_text_wanders(arch: str, tmp_path: Path) -> None:
    """Prompts lead to different texts, none of them a short loop, so that equal tokens mean something."""
    make_model(tmp_path, ModelSpec(arch=arch, vocab_size=512, max_position_embeddings=256))
    texts = greedy(tmp_path, PROMPTS, 24)
    assert min(len(set(text)) for text in texts) >= 8
    assert len({tuple(text[-8:]) for text in texts}) == len(PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= 512
    assert tokenizer.decode(tokenizer(ANY_TEXT).input_ids, skip_special_tokens=True) == ANY_TEXT


@pytest.mark.parametrize("arch", ["llama", "opt", "mixtral"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(arch: str, tmp_path: Path) -> None:
    """Every file, not only the weights."""
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make_model(tmp_path / name, ModelSpec(arch=arch, vocab_size=300, seed=seed))
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ac"]
    assert weights[0] != weights[1]


def test_the_command_line_reaches_every_field(tmp_path: Path) -> None:
    """What was asked for is in config.json."""
    shape = "--arch mixtral --layers 3 --hidden 96 --intermediate 80 --heads 6 --kv-heads 2 --head-dim 24 --vocab 400"
    more = "--max-len 128 --sliding-window 32 --experts 4 --experts-per-token 3 --dtype bfloat16 --seed 5 --init-std .1"
    assert run(str(tmp_path / "m"), *shape.split(), *more.split(), "--tie-word-embeddings") == 0
    config = AutoConfig.from_pretrained(tmp_path / "m").to_dict()
    expected = {
        "num_hidden_layers": 3,
        "hidden_size": 96,
        "intermediate_size": 80,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "vocab_size": 400,
        "max_position_embeddings": 128,
        "sliding_window": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
    }
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--arch", "bert"], ["arch", "bert", "qwen3"]),
        (["--dtype", "int8"], ["dtype", "int8", "bfloat16"]),
        (["--hidden", "100", "--heads", "6"], ["hidden_size", "100", "6"]),
        (["--heads", "4", "--kv-heads", "3"], ["num_kv_heads", "3", "4"]),
        (["--arch", "gpt2", "--kv-heads", "2"], ["num_kv_heads", "2", "gpt2"]),
        (["--arch", "qwen2", "--head-dim", "32"], ["head_dim", "32", "qwen2"]),
        (["--hidden", "60", "--heads", "4"], ["head_dim", "15", "even"]),
        (["--layers", "0"], ["num_layers", "0", "at least 1"]),
        (["--vocab", "100"], ["vocab_size", "100", "260"]),
        (["--sliding-window", "8"], ["sliding_window", "8", "mistral"]),
        (["--experts", "4"], ["num_experts", "4", "mixtral"]),
        (["--arch", "mixtral", "--experts", "2", "--experts-per-token", "3"], ["experts_per_token", "3", "2"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--init-std", "nan"], ["init_std", "nan"]),
        (["--arch", "opt", "--no-tie-word-embeddings", "--layers", "-2"], ["num_layers", "-2"]),
    ],
)
def test_a_model_that_cannot_be_is_one_line_and_code_2(
    arguments: list[str], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the argument, its value and what is allowed; nothing is written."""
    assert run(str(tmp_path / "m"), *arguments) == 2
    error = capsys.readouterr().err
    named = re.match(r"pdserve make-model: error: (--[a-z-]+): ", error)
    assert error.count("\n") == 1 and named is not None
    assert run_help().count(f"{named.group(1)} ") > 0, "it is a flag"
    assert all(name in error for name in names), error
    assert not (tmp_path / "m").exists()


def test_a_model_larger_than_memory_is_refused_before_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Environment: another machine may hold it."""
    assert run(str(tmp_path / "m"), "--hidden", "1000000000") == 3
    assert "bytes of memory are available: lower --hidden" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_make_model_checks_before_it_writes(tmp_path: Path) -> None:
    """The function refuses like the command."""
    with pytest.raises(BadModelSpec, match="num_kv_heads is 3"):
        make_model(tmp_path / "m", ModelSpec(num_kv_heads=3))
    assert not (tmp_path / "m").exists()


def test_a_directory_in_use_is_replaced_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --force, code 6 and the files as they were; with it, no stale shard stays."""
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    assert run(str(tmp_path), "--vocab", "300") == 6
    assert "--force" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model-00001-of-00002.safetensors", "notes.txt"}
    assert run(str(tmp_path), "--vocab", "300", "--force") == 0
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert run(str(tmp_path / "notes.txt"), "--vocab", "300") == 6


def test_the_tokenizer_follows_the_vocabulary(tmp_path: Path) -> None:
    """Never larger than the embedding; smaller merges are a prefix of larger; ids without text never win."""
    sizes = {}
    for vocab in (260, 1000, 4096, 6000):
        make_model(tmp_path / str(vocab), ModelSpec(vocab_size=vocab, hidden_size=32))
        sizes[vocab] = len(AutoTokenizer.from_pretrained(tmp_path / str(vocab)))
    assert sizes == {260: 260, 1000: 1000, 4096: 4096, 6000: 4096}
    assert max(greedy(tmp_path / "6000", ("import os",), 64)[0]) < 4096


@pytest.mark.parametrize(("arch", "starts_with_bos"), [("llama", True), ("qwen3", False)])
def test_chat_and_special_tokens_agree_with_the_configuration(arch: str, starts_with_bos: bool, tmp_path: Path) -> None:
    """BOS once where the architecture has one; both end marks end a generation."""
    make_model(tmp_path, ModelSpec(arch=arch))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.removeprefix("<|bos|>") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.startswith("<|bos|>") == starts_with_bos
    assert (tokenizer("x").input_ids[0] == tokenizer.bos_token_id) == starts_with_bos
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [END_OF_TEXT_ID, IM_END_ID]
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]) == [END_OF_TEXT_ID, IM_END_ID]


def test_the_demo_model_is_small_and_writes_python() -> None:
    """Legible greedy text, and a loss on unseen source far below that of a model which knows only token counts.

    Guessing uniformly costs log(4096) = 8.3 nats per token; knowing how often each token occurs, about 6.5.
    """
    directory = demo_model_directory()
    assert sum(path.stat().st_size for path in directory.glob("*.safetensors")) <= 8_000_000
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.decode(greedy(directory, ("import os",), 64)[0])
    assert text.isascii()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert len(set(text.split())) >= 3

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([tokenizer(UNSEEN_SOURCE).input_ids])
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() < 4.0
