"""How large a model's KV is by its checkpoint alone, and whether a worker's memory holds one request of full length.

A worker sees the layout for certain once it has loaded and tried the model, and refuses then. Loading may take minutes:
so what is known from shapes is refused before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.safetensors_headers import TensorEntry
from engine.mock import KV_BYTES_PER_TOKEN, mock_layout
from engine.sizing import num_kv_blocks
from pdserve.config import WorkerConfig
from pdserve.kv_layout import KvLayout, LayerLayout
from pdserve.settings import ConfigError

_NOT_TEXT = ("vision", "visual", "audio")
_FUSED = {  # model_type -> name of queries, keys and values in one matrix, and its side that they are on
    "phi3": ("qkv_proj.weight", 0),
    "gpt_neox": ("query_key_value.weight", 0),
    "gpt2": ("attn.c_attn.weight", 1),
}
_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")  # DeepSeek's attention, which is cached expanded


def kv_elements(
    text_config: Mapping[str, Any], sizes: Mapping[str, int], tensors: Mapping[str, TensorEntry]
) -> int | None:
    """Numbers that a token has in all layers; None where the weights do not tell.

    Shapes of weights, not the configuration: what that leaves out has another default in every family.
    """
    layers, heads = sizes["num_hidden_layers"], sizes["num_attention_heads"]
    latent = [size for name in _LATENT if type(size := text_config.get(name)) is int and size > 0]
    if len(latent) == len(_LATENT):
        return layers * heads * sum(latent)
    if (fused := _FUSED.get(str(text_config.get("model_type")))) is not None:
        name, side = fused
        kv_heads = sizes.get("num_key_value_heads", heads)
        rows = _rows(tensors, name, side)
        return sum(rows) * 2 * kv_heads // (heads + 2 * kv_heads) if len(rows) == layers else None
    keys, values = (_rows(tensors, f"attn.{which}_proj.weight", 0) for which in "kv")
    return sum(keys) + sum(values) if len(keys) == len(values) == layers else None


def _rows(tensors: Mapping[str, TensorEntry], name: str, side: int) -> list[int]:
    """Of every matrix of that name, but for those of other parts than the text model."""
    return [
        entry.shape[side]
        for known, entry in tensors.items()
        if known.endswith(name) and len(entry.shape) == 2 and not any(word in known for word in _NOT_TEXT)
    ]


def check_kv_room(worker: WorkerConfig, elements: int | None, max_model_len: int) -> None:
    """Raises ConfigError where one request of full length has no room; what is not known yet is left to the worker."""
    if worker.kv_bytes is None:  # a GPU's: what it leaves
        return
    if worker.mock is not None:
        layout = mock_layout("", worker.block_size, KV_BYTES_PER_TOKEN)
    elif elements is not None:
        layout = KvLayout("", worker.dtype, worker.block_size, (LayerLayout(1, elements, 0),))
    else:
        return
    try:
        num_kv_blocks(layout, worker.kv_bytes, max_model_len)
    except ValueError as error:
        raise ConfigError([f"--kv-bytes: {error}; give more, or lower --max-model-len"]) from None
