"""Models that would be computed wrongly are refused by name when they are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from engine.families import REFUSED, TESTED
from engine.model import load_model
from engine.unsupported import UnsupportedModel

OLD = {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
NEW: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "gptj": {**OLD, "rotary_dim": 8},
    "gpt_neo": {
        **{"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128},
        "attention_types": [[["global", "local"], 1]],
    },
    "falcon": {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mpt": {"vocab_size": 300, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "codegen": {**OLD, "rotary_dim": 8},
    "mamba": {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2},
    "mamba2": {
        **{"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2},
        **{"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    },
    "rwkv": {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
    "jamba": {**NEW, "use_mamba_kernels": False, "num_experts": 2},
    "recurrent_gemma": {**NEW, "head_dim": 16, "lru_width": 64, "num_key_value_heads": 1},
    "qwen3_next": {
        **NEW,
        "layer_types": ["linear_attention", "full_attention"],
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 2},
        **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "head_dim": 16},
        **{"num_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    },
    "lfm2": {**NEW, "layer_types": ["conv", "full_attention"]},
    "falcon_h1": {**NEW, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "diffllama": NEW,
}
LLAMA4 = {**NEW, "intermediate_size_mlp": 96, "num_local_experts": 4, "head_dim": 16}


def _save(directory: Path, model_type: str, fields: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**fields))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
    model.save_pretrained(directory)
    return directory


@pytest.mark.filterwarnings("ignore")  # transformers' own, about kernels that are not installed
@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_model_with_attention_or_state_of_its_own_is_refused(model_type: str, tmp_path: Path) -> None:
    """The error names the family and the directory."""
    directory = _save(tmp_path, model_type, CONFIGS[model_type])
    with pytest.raises(UnsupportedModel, match=rf"^{model_type} \({directory}\): "):
        load_model(directory, max_model_len=100)


def test_attention_in_chunks_of_positions_is_refused_where_a_sequence_could_meet_it(tmp_path: Path) -> None:
    """Llama 4 masks by chunk; within one chunk that is causal attention."""
    directory = _save(tmp_path, "llama4_text", {**LLAMA4, "attention_chunk_size": 64})
    with pytest.raises(UnsupportedModel, match="neither causal nor its sliding window"):
        load_model(directory, max_model_len=65)
    assert load_model(directory, max_model_len=64).max_model_len == 64


def test_a_quantized_checkpoint_is_refused(tiny_dir: Any, tmp_path: Path) -> None:
    """Its weights would be read as something else."""
    import json
    import shutil

    directory = tmp_path / "model"
    shutil.copytree(tiny_dir(), directory)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="quantized"):
        load_model(directory)


def test_the_table_of_refused_families_says_what_is_tested_here() -> None:
    """Documentation quotes it."""
    assert not set(TESTED) & set(REFUSED)
    assert set(REFUSED) == set(CONFIGS)


def test_weights_that_do_not_fit_the_configuration_are_named(tiny_dir: Any, tmp_path: Path) -> None:
    """One line with a tensor's name, not transformers' report."""
    shutil.copytree(tiny_dir("llama"), tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "intermediate_size": 3 * 16}))
    with pytest.raises(ValueError, match=r"do not fit its config\.json") as caught:
        load_model(tmp_path / "odd")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "bad"), [("float32", float("nan")), ("bfloat16", float("inf"))])
def test_weights_that_are_not_finite_are_refused_by_name(tiny_dir: Any, tmp_path: Path, dtype: str, bad: float) -> None:
    shutil.copytree(tiny_dir("llama"), tmp_path / "odd")
    weights = load_file(tmp_path / "odd" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    save_file(weights, tmp_path / "odd" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite"):
        load_model(tmp_path / "odd", dtype)
