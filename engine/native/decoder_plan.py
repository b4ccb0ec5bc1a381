"""What a decoder's layers are, read off a `transformers` module: the form that the native step computes.

Only families whose modelling code was read are listed. Reading is not believed either: `engine/model.py` compares the
native step's logits with the module's own before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.attention.interface import AttentionCall


class NotThisForm(Exception):
    """The module is not of a form that the native step knows; the message says what is in the way."""


@dataclass(frozen=True, slots=True)
class NormPlan:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight."""

    weight: Tensor  # float32, with what the family adds to it
    eps: float


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer; the linears are the module's own, so that they can be emptied one by one once they are packed."""

    before_attention: NormPlan | None
    after_attention: NormPlan | None
    before_mlp: NormPlan | None
    after_mlp: NormPlan | None
    query: NormPlan | None
    key: NormPlan | None
    qkv: tuple[nn.Linear, ...]  # q, k and v, or one that holds all three
    out: nn.Linear
    gate_up: tuple[nn.Linear, ...]  # gate and up, or one that holds both
    down: nn.Linear
    activation: str  # of the gate: "silu" or "gelu_tanh"
    rope: int | None  # which of the plan's rotations
    call: AttentionCall


@dataclass(frozen=True, slots=True)
class RopePlan:
    """Rotary positions: pairs (i, i + n) turn by position * frequencies[i]."""

    frequencies: Tensor  # [n] float32
    scale: float


@dataclass(frozen=True, slots=True)
class DecoderPlan:
    """A whole decoder."""

    heads: int
    norm_all_heads: bool  # query and key norms run over all heads at once
    layers: tuple[LayerPlan, ...]
    ropes: tuple[RopePlan, ...]
    last: NormPlan
    head: nn.Linear
    embedding: nn.Embedding
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_softcap: float  # 0: none


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family names its norms. None: it has no such norm."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    weight_plus: float = 0.0  # what is added to a norm's weight
    norm_all_heads: bool = False


_PLAIN = _Family()
_SANDWICH = _Family(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
    weight_plus=1.0,
)
_FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3"), _PLAIN),
    "gemma": _Family(weight_plus=1.0),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "olmo2": _Family(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
        norm_all_heads=True,
    ),
}
NATIVE_FAMILIES = tuple(_FAMILIES)
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_plan(module: Any, calls: Iterable[AttentionCall]) -> DecoderPlan:
    """The plan of a causal model; `calls` are what its attention layers asked in the dry run, in order of layers.

    Raises NotThisForm.
    """
    config = module.config.get_text_config()
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise NotThisForm(f"{config.model_type} has no native step")
    decoder = module.model
    ropes, rope_of = _ropes(decoder.rotary_emb)
    layers = tuple(
        _layer(layer, family, call, config, rope_of) for layer, call in zip(decoder.layers, calls, strict=True)
    )
    return DecoderPlan(
        heads=config.num_attention_heads,
        norm_all_heads=family.norm_all_heads,
        layers=layers,
        ropes=ropes,
        last=_required(_norm(decoder.norm, family)),
        head=_linear(module.lm_head),
        embedding=decoder.embed_tokens,
        embedding_scale=_embedding_scale(decoder, config),
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        logit_scale=1.0 / float(getattr(config, "logits_scaling", 1.0)),
        logit_softcap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
    )


def _layer(layer: Any, family: _Family, call: AttentionCall, config: Any, rope_of: dict[str | None, int]) -> LayerPlan:
    attention, mlp = layer.self_attn, layer.mlp
    if call.sinks is not None:
        raise NotThisForm("attention sinks have no native step")
    activation = _ACTIVATIONS.get(getattr(config, "hidden_activation", None) or config.hidden_act)
    if activation is None:
        raise NotThisForm(f"the activation {config.hidden_act} has no native step")
    turns = getattr(attention, "use_rope", True)
    kind = getattr(attention, "layer_type", None) if None not in rope_of else None
    return LayerPlan(
        before_attention=_named_norm(layer, family.before_attention, family),
        after_attention=_named_norm(layer, family.after_attention, family),
        before_mlp=_named_norm(layer, family.before_mlp, family),
        after_mlp=_named_norm(layer, family.after_mlp, family),
        query=_norm(getattr(attention, "q_norm", None), family),
        key=_norm(getattr(attention, "k_norm", None), family),
        qkv=_linears(attention, ("qkv_proj",), ("q_proj", "k_proj", "v_proj")),
        out=_linear(attention.o_proj),
        gate_up=_linears(mlp, ("gate_up_proj",), ("gate_proj", "up_proj")),
        down=_linear(mlp.down_proj),
        activation=activation,
        rope=rope_of.get(kind) if turns else None,
        call=call,
    )


def _ropes(rotary: Any) -> tuple[tuple[RopePlan, ...], dict[str | None, int]]:
    """The kinds of rotation, and which is whose: by layer type, or None where all layers turn alike."""
    if hasattr(rotary, "inv_freq"):
        return (RopePlan(rotary.inv_freq.float(), float(rotary.attention_scaling)),), {None: 0}
    kinds = sorted(kind for kind in set(rotary.config.layer_types) if hasattr(rotary, f"{kind}_inv_freq"))
    plans = tuple(
        RopePlan(getattr(rotary, f"{kind}_inv_freq").float(), float(getattr(rotary, f"{kind}_attention_scaling")))
        for kind in kinds
    )
    return plans, {kind: index for index, kind in enumerate(kinds)}


def _named_norm(layer: Any, name: str | None, family: _Family) -> NormPlan | None:
    return None if name is None else _required(_norm(getattr(layer, name), family))


def _norm(norm: Any, family: _Family) -> NormPlan | None:
    if norm is None:
        return None
    if not type(norm).__name__.endswith("RMSNorm"):
        raise NotThisForm(f"{type(norm).__name__} has no native step")
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return NormPlan((norm.weight.detach().float() + family.weight_plus).contiguous(), float(eps))


def _required(norm: NormPlan | None) -> NormPlan:
    if norm is None:
        raise NotThisForm("a norm is missing")
    return norm


def _linears(owner: Any, *choices: tuple[str, ...]) -> tuple[nn.Linear, ...]:
    for names in choices:
        if all(hasattr(owner, name) for name in names):
            return tuple(_linear(getattr(owner, name)) for name in names)
    raise NotThisForm(f"{type(owner).__name__} has none of {choices}")


def _linear(part: Any) -> nn.Linear:
    if not isinstance(part, nn.Linear):
        raise NotThisForm(f"{type(part).__name__} has no native step")
    return part


def _embedding_scale(decoder: Any, config: Any) -> float:
    scale = getattr(decoder.embed_tokens, "embed_scale", None)
    if isinstance(scale, Tensor):
        return float(scale.to(decoder.embed_tokens.weight.dtype))
    return float(getattr(config, "embedding_multiplier", 1.0))
