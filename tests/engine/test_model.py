"""What loading learns, fixes and refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from engine.model import load_model
from pdserve.kv_layout import LayerLayout


def _edited(source: Path, directory: Path, **config: Any) -> Path:
    """A copy of a checkpoint with other configuration values."""
    shutil.copytree(source, directory)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return directory


def test_facts_come_from_what_the_layers_did(load_tiny: Any) -> None:
    """DeepSeek's keys are longer than its values; the configuration's head_dim names neither."""
    model = load_tiny("deepseek_v3")
    assert model.layers == (LayerLayout(4, 24, 16),) * 2
    layout = model.kv_layout(8)
    assert layout.block_elements == 2 * 4 * 8 * (24 + 16)
    assert layout.model == model.fingerprint and layout.dtype == "float32"
    assert (model.vocab_size, model.max_model_len, model.deterministic) == (512, 256, True)


def test_end_tokens_come_from_the_generation_configuration(load_tiny: Any, tiny_dir: Any) -> None:
    """All of them, sorted."""
    expected = json.loads((tiny_dir("qwen3") / "generation_config.json").read_text())["eos_token_id"]
    assert load_tiny("qwen3").eos_token_ids == tuple(sorted(expected))


def test_fingerprints_differ_by_weights_and_by_configuration(tiny_dir: Any, tmp_path: Path) -> None:
    """The same checkpoint twice is the same; one changed number of a norm, a seed, or a RoPE base is another."""
    source = tiny_dir("llama")
    first = load_model(source).fingerprint
    assert load_model(_edited(source, tmp_path / "copy")).fingerprint == first
    assert load_model(tiny_dir("llama", seed=1)).fingerprint != first
    assert load_model(_edited(source, tmp_path / "eps", rms_norm_eps=1e-3)).fingerprint != first
    tuned = _edited(source, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["model.norm.weight"][17] += 0.5
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    assert load_model(tuned).fingerprint != first


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars:UserWarning")  # where the environment forbids the hub's
def test_loading_draws_no_bar_and_leaves_the_switch_as_it_was(tiny_dir: Any, capfd: pytest.CaptureFixture[str]) -> None:
    directory = tiny_dir("llama")
    transformers_logging.enable_progress_bar()
    try:
        load_model(directory)
        assert transformers_logging.is_progress_bar_enabled()
        assert "Loading" not in capfd.readouterr().err
        AutoModelForCausalLM.from_pretrained(directory)
        assert "Loading" in capfd.readouterr().err  # it would have
    finally:
        transformers_logging.disable_progress_bar()


def test_bad_arguments_are_named(tiny_dir: Any, tmp_path: Path) -> None:
    """Value and what is allowed."""
    directory = tiny_dir("llama")
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32, bfloat16, float16"):
        load_model(directory, dtype="int8")
    with pytest.raises(ValueError, match="float16 is slow there"):
        load_model(directory, dtype="float16")
    with pytest.raises(ValueError, match=r"max_model_len is 257; .* allows 1 to 256"):
        load_model(directory, max_model_len=257)
    with pytest.raises(ValueError, match="deterministic mode is for float32"):
        load_model(directory, dtype="bfloat16", deterministic=True)
    with pytest.raises(OSError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_pickled_weights_are_not_read(tiny_dir: Any, tmp_path: Path) -> None:
    """A checkpoint with pytorch_model.bin only is no checkpoint: unpickling runs code."""
    directory = _edited(tiny_dir("llama"), tmp_path / "pickled")
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(directory)


def test_code_in_a_checkpoint_is_not_run(tiny_dir: Any, tmp_path: Path) -> None:
    """An unknown family that brings its own classes is refused, and they are never imported."""
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    directory = _edited(tiny_dir("llama"), tmp_path / "evil", auto_map=auto_map, model_type="evil")
    witness = tmp_path / "witness"
    (directory / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    with pytest.raises(ValueError):
        load_model(directory)
    assert not witness.exists()


def _longrope(directory: Path) -> Path:
    """A Phi-3 whose rotary frequencies change when the longest position of a call passes 32."""
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + 3 * i for i in range(8)]}
    config = CONFIG_MAPPING["phi3"](
        **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    model.save_pretrained(directory)
    return directory


def test_rotary_frequencies_are_fixed_by_the_longest_sequence_allowed(tmp_path: Path, driver: Any) -> None:
    """A short sequence has the same numbers beside a long one, before and after; max_model_len chooses the factors."""
    directory = _longrope(tmp_path / "phi3")
    model, short_only = load_model(directory), load_model(directory, max_model_len=32)
    prompt = list(range(10, 30))
    runs = {}
    for name, chosen, long_first in (("alone", model, False), ("beside", model, True), ("short", short_only, False)):
        running = driver(chosen)
        if long_first:
            running.add([i % 300 for i in range(90)], 30)
        sequence = running.add(prompt, 8)
        running.run()
        runs[name] = torch.stack(sequence.logits)
    assert torch.equal(runs["alone"], runs["beside"])
    assert not torch.allclose(runs["alone"], runs["short"], atol=1e-2)
    eager = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        short_factors = eager(torch.tensor([prompt]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(runs["short"][0], short_factors, atol=1e-4, rtol=0)


def test_dynamic_rotary_scaling_is_fixed_too(tiny_dir: Any, tmp_path: Path, driver: Any) -> None:
    """Dynamic NTK stretches the longest sequence by its factor, and does not move with the call."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    directory = _edited(tiny_dir("llama"), tmp_path / "ntk", rope_parameters=rope, max_position_embeddings=32)
    model = load_model(directory)
    assert model.max_model_len == 128
    runs = []
    for long_first in (False, True):
        running = driver(model)
        if long_first:
            running.add(list(range(100)), 20)
        sequence = running.add(list(range(10, 30)), 6)
        running.run()
        runs.append(torch.stack(sequence.logits))
    assert torch.equal(runs[0], runs[1])


PEAK = """
import sys, torch
torch.set_num_threads(1)
import transformers.models.llama.modeling_llama
from engine.model import load_model
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
before = status("VmRSS:")
model = load_model(sys.argv[1])
table = model.kernels.module.get_input_embeddings().weight
print(model.weight_bytes + table.numel() * table.element_size(), status("VmHWM:") - before)
"""


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_weights(tiny_dir: Any) -> None:
    """Peak growth below 1.2 times the weights, in a process of its own."""
    directory = tiny_dir("llama", hidden_size=1024, num_layers=6, vocab_size=4096)
    command = [sys.executable, "-W", "ignore", "-c", PEAK, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    weights, growth = map(int, done.stdout.split())
    assert weights > 250e6
    assert growth < 1.2 * weights
