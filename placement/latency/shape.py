"""A model as far as time and memory go: read from its `config.json`, or by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of equal layers."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of one expert
    vocab: int
    gated: bool = True  # three matrices in the MLP, else two
    tied: bool = False  # the output projection is the embedding
    experts: int = 1
    active_experts: int = 1
    bytes_per_weight: float = 2.0
    bytes_per_kv: float = 2.0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "active_experts"):
            if getattr(self, name) < 1:
                raise ValueError(f"model {self.name}: {name} is {getattr(self, name)}, must be at least 1")
        if self.active_experts > self.experts:
            raise ValueError(f"model {self.name}: {self.active_experts} of {self.experts} experts active")

    @property
    def attention_weights(self) -> int:
        """Of one layer."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def expert_weights(self) -> int:
        """Of one expert of one layer."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """All parameters, norms left out."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        router = self.hidden * self.experts if self.experts > 1 else 0
        return embeddings + self.layers * (self.attention_weights + self.experts * self.expert_weights + router)

    @property
    def weight_bytes(self) -> float:
        return self.weights * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one position over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_kv

    @property
    def flops_per_token(self) -> float:
        """Of the layers' matrix products, forward, attention's and the output projection's not counted."""
        return 2.0 * self.layers * (self.attention_weights + self.active_experts * self.expert_weights)

    @property
    def flops_per_pair(self) -> float:
        """Of one query position looking at one key position, over all layers."""
        return 4.0 * self.layers * self.heads * self.head_dim

    def read_weight_bytes(self, tokens: float) -> float:
        """Weights that a step of so many tokens reads: all of a dense model, of a mixture the experts that are hit."""
        if self.experts == 1:
            share = 1.0
        else:
            share = 1.0 - (1.0 - self.active_experts / self.experts) ** tokens
        layer = self.attention_weights + share * self.experts * self.expert_weights
        return (self.layers * layer + self.vocab * self.hidden) * self.bytes_per_weight


def shape_from_config(name: str, config: Mapping[str, object]) -> ModelShape:
    """From a Hugging Face `config.json`. Errors: ValueError naming the key that is missing or no number."""
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = text

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            if value is not None and not (isinstance(value, int) and value == 0):
                raise ValueError(f"config of {name}: {key} is {value!r}, must be a whole number above 0")
        if default is None:
            raise ValueError(f"config of {name}: {keys[0]} is missing")
        return default

    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head")
    experts = number("num_experts", "num_local_experts", "n_routed_experts", default=1)
    gated = "ffn_dim" not in config and "n_inner" not in config and "n_embd" not in config
    return ModelShape(
        name=name,
        layers=number("num_hidden_layers", "n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_dim=number("head_dim", default=hidden // heads),
        intermediate=_expert_width(config) or number("intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
        vocab=number("vocab_size"),
        gated=gated,
        tied=bool(config.get("tie_word_embeddings", False)),
        experts=experts,
        active_experts=number("num_experts_per_tok", default=1) if experts > 1 else 1,
    )


def _expert_width(config: Mapping[str, object]) -> int | None:
    width = config.get("moe_intermediate_size")
    return width if isinstance(width, int) and width > 0 else None


KNOWN_SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 151936, tied=True),
        ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256),
        ModelShape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936),
        ModelShape("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936),
        ModelShape("llama-2-13b", 40, 5120, 40, 40, 128, 13824, 32000),
        ModelShape("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000),
        ModelShape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256),
        ModelShape("llama-3.1-405b", 126, 16384, 128, 8, 128, 53248, 128256),
        ModelShape("mixtral-8x7b", 32, 4096, 32, 8, 128, 14336, 32000, experts=8, active_experts=2),
        ModelShape("qwen3-30b-a3b", 48, 2048, 32, 4, 128, 768, 151936, experts=128, active_experts=8),
        ModelShape("opt-13b", 40, 5120, 40, 40, 128, 20480, 50272, gated=False, tied=True),
        ModelShape("opt-66b", 64, 9216, 72, 72, 128, 36864, 50272, gated=False, tied=True),
        ModelShape("opt-175b", 96, 12288, 96, 96, 128, 49152, 50272, gated=False, tied=True),
        ModelShape("bloom-176b", 70, 14336, 112, 112, 128, 57344, 250880, gated=False, tied=True),
    )
}
