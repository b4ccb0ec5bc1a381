"""A random model on a GPU without a checkpoint, and what the card was measured to do: for bench.gpu_step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.attention.plug import ATTENTION_NAME
from engine.kv_pool import TORCH_DTYPES
from pdserve.kv_layout import KvLayout, LayerLayout

SPREAD = 0.02  # of the weights: products of random matrices stay finite


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's; the default is the 8B one's (Llama 3.1)."""

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 128_256

    def kv_layout(self, dtype: str, block_size: int) -> KvLayout:
        """The layout of its KV; two of the same shape can be confused, so the fingerprint is no fingerprint."""
        layer = LayerLayout(self.kv_heads, self.head_dim, self.head_dim)
        return KvLayout("random", dtype, block_size, (layer,) * self.layers)


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A module on the device."""

    module: Any
    weight_bytes: int  # that a step reads: the embedding's table excepted
    matrix_elements: int  # that every token is multiplied with, the output's excepted


def random_model(shape: Shape, dtype: str, device: torch.device, max_model_len: int) -> RandomModel:
    """Made where it will run: neither host memory nor a file holds the weights. Cost: one pass over them."""
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=max_model_len, tie_word_embeddings=False,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(TORCH_DTYPES[dtype])
    try:
        with device:
            module: Any = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)
    finally:
        torch.set_default_dtype(before)
    module = module.to(device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for weight in module.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=SPREAD, generator=generator)
    table, output = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    others = [weight for weight in module.parameters() if weight is not table]
    return RandomModel(
        module=module,
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in others),
        matrix_elements=sum(weight.numel() for weight in others if weight.dim() > 1 and weight is not output),
    )


def save_random(shape: Shape, dtype: str, device: torch.device, max_model_len: int, directory: Path) -> None:
    """The same as a checkpoint that workers load; no tokenizer."""
    random_model(shape, dtype, device, max_model_len).module.save_pretrained(directory)


@dataclass(frozen=True, slots=True)
class Card:
    """What the device was measured to do in this run."""

    name: str
    copy_bytes_per_s: float  # read and written, device to device
    flops: float  # of a large square product in the model's dtype, on random numbers


def measure_card(device: torch.device, dtype: str, tries: int) -> Card:
    """Copy 2 GiB; multiply 8192 x 8192 x 8192."""
    return Card(torch.cuda.get_device_name(device), _copy_rate(device, tries), _product_rate(device, dtype, tries))


def _copy_rate(device: torch.device, tries: int) -> float:
    source = torch.empty(1 << 31, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / least_seconds(lambda: target.copy_(source), tries)


def _product_rate(device: torch.device, dtype: str, tries: int) -> float:
    side = 8192
    left, right = (torch.randn(side, side, device=device, dtype=TORCH_DTYPES[dtype]) for _ in range(2))
    return 2 * side**3 / least_seconds(lambda: left @ right, tries)


def least_seconds(act: Callable[[], object], tries: int) -> float:
    """Device time of the quickest of some tries, after two that do not count; by events on the current stream."""
    for _ in range(2):
        act()
    seconds = []
    for _ in range(tries):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        act()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return float(min(seconds))
