"""Model directories as they should not be: each is refused in one line that names the file and the reason."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.checkpoint import check_checkpoint
from deploy.model_card import read_model_card
from deploy.models.demo_model import demo_model_directory
from deploy.safetensors_headers import BadCheckpoint
from deploy.tokenizer_probe import probe

ModelFiles = Any  # the fixture's class, in conftest.py
TENSOR = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


def text(name: str, content: str | bytes) -> Callable[[ModelFiles], object]:
    return lambda files: (files.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def raw(header: str, data: bytes = b"", length: int | None = None) -> Callable[[ModelFiles], object]:
    return lambda files: files.raw_weights(header, data, length)


def config(**changes: object) -> Callable[[ModelFiles], object]:
    return lambda files: files.config(**changes)


def sharded(weight_map: object) -> Callable[[ModelFiles], object]:
    return lambda files: files.sharded(weight_map)


def only_pickles(files: ModelFiles) -> None:
    (files.path / "model.safetensors").rename(files.path / "pytorch_model.bin")


def symlink_out(files: ModelFiles) -> None:
    outside = files.path.parent / "outside.safetensors"
    (files.path / "model.safetensors").rename(outside)
    (files.path / "model.safetensors").symlink_to(outside)


def broken_symlink(files: ModelFiles) -> None:
    (files.path / "model.safetensors").unlink()
    (files.path / "model.safetensors").symlink_to("nowhere")


def shard_in_two(files: ModelFiles) -> None:
    files.weights({"x": ("F32", [2])}, "a.safetensors")
    files.weights({"x": ("F32", [2])}, "b.safetensors")
    files.sharded({"x": "a.safetensors", "y": "b.safetensors"})


def truncated(files: ModelFiles) -> None:
    file = files.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def added_token(files: ModelFiles) -> None:
    files.tokenizer(added_tokens=[{"id": 16, "content": "<x>"}])


BAD: dict[str, tuple[Callable[[ModelFiles], object], str]] = {
    "no config": (lambda files: (files.path / "config.json").unlink(), "config.json: is missing"),
    "config not JSON": (text("config.json", "{"), "config.json: is not JSON"),
    "config not text": (text("config.json", b"\xff\xfe\x00"), "config.json: is not UTF-8"),
    "config a list": (text("config.json", "[]"), "config.json: is not a JSON object"),
    "config too deep": (text("config.json", "[" * 100_000), "config.json: is nested too deeply"),
    "config too large": (text("config.json", b" " * 9_000_000), "at most 8,000,000 are read"),
    "config key twice": (text("config.json", '{"a": 1, "a": 2}'), "the name 'a' appears twice"),
    "no architecture": (config(architectures=None), "architectures is None"),
    "wrong type": (config(hidden_size="8"), "hidden_size is '8'; it must be a whole number"),
    "boolean size": (config(num_hidden_layers=True), "num_hidden_layers is True"),
    "negative layers": (config(num_hidden_layers=-1), "num_hidden_layers is -1; it must be a whole number"),
    "absurd size": (config(hidden_size=1 << 40), "hidden_size is 1099511627776"),
    "size missing": (config(vocab_size=None), "vocab_size is missing"),
    "heads do not divide": (config(num_attention_heads=3), "hidden_size is 8; it must be a multiple of"),
    "kv heads do not divide": (config(num_attention_heads=4, num_key_value_heads=3), "num_key_value_heads is 3"),
    "only pickles": (only_pickles, "found only pytorch_model.bin; model.safetensors"),
    "empty weights": (text("model.safetensors", b""), "has 0 bytes, too few"),
    "header longer than the file": (raw("{}", length=1000), "header length is 1,000"),
    "header of 2^63": (raw("{}", length=1 << 63), "header length is 9,223,372,036,854,775,808"),
    "header of nothing": (raw("", length=0), "header length is 0"),
    "header not JSON": (raw("{]"), "(header): is not JSON"),
    "header a list": (raw("[]"), "header is not an object"),
    "no tensor": (raw("{}"), "hold no tensor"),
    "tensor twice": (raw("{" + TENSOR + "," + TENSOR + "}", bytes(8)), "the name 'a' appears twice"),
    "unknown dtype": (raw("{" + TENSOR.replace("F32", "F31") + "}", bytes(8)), "unknown dtype 'F31'"),
    "shape and offsets differ": (raw("{" + TENSOR.replace("[2]", "[3]") + "}", bytes(8)), "needs 12 bytes, has 8"),
    "negative offset": (raw("{" + TENSOR.replace("[0, 8]", "[-8, 0]") + "}"), "bad data_offsets"),
    "offset a float": (raw("{" + TENSOR.replace("[0, 8]", "[0.0, 8.0]") + "}", bytes(8)), "bad data_offsets"),
    "overlap": (raw("{" + TENSOR + "," + TENSOR.replace("a", "b", 1) + "}", bytes(8)), "overlaps another"),
    "hole": (raw("{" + TENSOR.replace("[0, 8]", "[8, 16]") + "}", bytes(16)), "leaves a hole"),
    "truncated": (truncated, "is truncated"),
    "bytes left over": (raw("{" + TENSOR + "}", bytes(9)), "longer than its header says"),
    "symlink out": (symlink_out, "leads out of the model directory"),
    "broken symlink": (broken_symlink, "is missing"),
    "shard missing": (sharded({"x": "a.safetensors"}), "a.safetensors: is missing"),
    "shard above": (sharded({"x": "../a.safetensors"}), "'../a.safetensors'; it must be a plain name"),
    "shard absolute": (sharded({"x": "/etc/passwd"}), "'/etc/passwd'; it must be a plain name"),
    "shard a pickle": (sharded({"x": "a.bin"}), "'a.bin'; weights are read from safetensors only"),
    "index no map": (sharded(["x"]), "weight_map must map"),
    "tensor in two shards": (shard_in_two, "tensor 'x' is in another shard too"),
    "embedding rows differ": (config(vocab_size=17), "vocab_size is 17; tensor 'model.embed_tokens.w"),
    "no tokenizer": (lambda files: (files.path / "tokenizer.json").unlink(), "no other tokenizer"),
    "tokenizer not JSON": (text("tokenizer.json", "x"), "tokenizer.json: is not JSON"),
    "tokenizer without vocab": (text("tokenizer.json", "{}"), "has no model.vocab"),
    "token id too large": (added_token, "has the token id 16; the embedding has 16 rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_directory_is_refused(model_files: ModelFiles, name: str) -> None:
    """One line, with the directory's name in it and the reason."""
    spoil, reason = BAD[name]
    spoil(model_files)
    with pytest.raises(BadCheckpoint) as caught:
        check_checkpoint(model_files.path)
    message = str(caught.value)
    assert reason in message
    assert str(model_files.path) in message
    assert "\n" not in message


def test_a_good_directory_is_described(model_files: ModelFiles) -> None:
    """Sizes come from the files."""
    found = check_checkpoint(model_files.path)
    assert (found.vocab_size, found.max_position, found.num_parameters) == (16, 64, 256)
    assert (found.weight_bytes, found.stored_dtype, found.architecture) == (1024, "float32", "LlamaForCausalLM")


def test_shards_are_read_through_the_index(model_files: ModelFiles) -> None:
    """Each shard's tensors count once."""
    model_files.weights({"model.embed_tokens.weight": ("BF16", [16, 8])}, "a.safetensors")
    model_files.weights({"lm_head.weight": ("BF16", [16, 8])}, "b.safetensors")
    model_files.sharded({"model.embed_tokens.weight": "a.safetensors", "lm_head.weight": "b.safetensors"})
    found = check_checkpoint(model_files.path)
    assert (found.num_parameters, found.stored_dtype) == (256, "bfloat16")


def test_the_hubs_cache_may_link_to_its_blobs(model_files: ModelFiles) -> None:
    """A snapshot's files are links into the same model's folder, and only there."""
    snapshot = model_files.path.parent / "models--a--b" / "snapshots" / "0123"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(model_files.path, snapshot)
    (snapshot / "model.safetensors").rename(blobs / "ffff")
    (snapshot / "model.safetensors").symlink_to("../../blobs/ffff")
    assert check_checkpoint(snapshot).num_parameters == 256


def test_code_in_a_checkpoint_is_never_run(
    model_files: ModelFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """auto_map and Python files are named in a warning; the canary stays silent."""
    canary = tmp_path / "canary"
    (model_files.path / "modeling_x.py").write_text(f"open({str(canary)!r}, 'w')")
    model_files.config(auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    with caplog.at_level(logging.WARNING):
        check_checkpoint(model_files.path)
    assert "auto_map is ignored" in caplog.text
    assert "modeling_x.py" in caplog.text
    assert not canary.exists()


def test_a_pattern_that_backtracks_is_found(model_files: ModelFiles) -> None:
    """The tokenizer is tried, in a process that can be killed."""
    pattern = {"Regex": r"(aa|a+)+$x"}
    model_files.tokenizer(pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    problem = probe(model_files.path / "tokenizer.json")
    assert problem is not None
    assert problem.startswith("cannot encode 4,096 characters like 'aaaa'")


def test_a_tokenizer_that_does_not_load_is_refused(model_files: ModelFiles) -> None:
    """What the library says is the reason."""
    model_files.tokenizer(normalizer={"type": "Nonsense"})
    with pytest.raises(BadCheckpoint, match=r"tokenizer.json: does not load: "):
        check_checkpoint(model_files.path)


def test_the_shipped_model_passes() -> None:
    """And its ends of sequence come from generation_config.json."""
    found = check_checkpoint(demo_model_directory())
    card = read_model_card(found, "demo", 2048)
    generation = json.loads((demo_model_directory() / "generation_config.json").read_text())
    assert list(card.eos_token_ids) == generation["eos_token_id"]


def test_an_end_of_sequence_out_of_range_is_refused(model_files: ModelFiles) -> None:
    """It could never be sampled."""
    (model_files.path / "generation_config.json").write_text('{"eos_token_id": 16}')
    with pytest.raises(BadCheckpoint, match="eos_token_id is 16; ids must be from 0 to 15"):
        read_model_card(check_checkpoint(model_files.path), "x", 64)
