"""Each architecture's transformers configuration, from a resolved spec."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from deploy.models import byte_bpe
from deploy.models.model_spec import STARTS_WITH_BOS, ResolvedSpec

MODEL_TYPES = {"llama3": "llama", "gemma3": "gemma3_text"}  # where the name on the command line is not HF's


def config_for(spec: ResolvedSpec) -> PreTrainedConfig:
    """The configuration that AutoModelForCausalLM builds spec's model from."""
    config_class = CONFIG_MAPPING[MODEL_TYPES.get(spec.arch, spec.arch)]
    return config_class(**{**_common(spec), **_special(spec)}, dtype=spec.dtype)


def _common(spec: ResolvedSpec) -> dict[str, Any]:
    common: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "max_position_embeddings": spec.max_position_embeddings,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": byte_bpe.BOS_ID if spec.arch in STARTS_WITH_BOS else byte_bpe.END_OF_TEXT_ID,
        "eos_token_id": byte_bpe.END_OF_TEXT_ID,
        "pad_token_id": byte_bpe.END_OF_TEXT_ID,
    }
    return common


def _special(spec: ResolvedSpec) -> dict[str, Any]:
    """What an architecture has beyond, or instead of, the common names."""
    rope: dict[str, Any]
    head_dim: dict[str, Any] = {"head_dim": spec.head_dim}
    experts: dict[str, Any] = {"num_local_experts": spec.num_experts, "num_experts_per_tok": spec.experts_per_token}
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(spec.num_layers)]
    match spec.arch:
        case "llama":
            return head_dim
        case "llama3":
            rope = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0, "rope_theta": 500_000.0}
            short = {"original_max_position_embeddings": max(1, spec.max_position_embeddings // 8)}
            return head_dim | {"rope_parameters": rope | short | {"rope_type": "llama3"}}
        case "qwen2" | "qwen3":
            # Both have sliding layers only when asked to; every second one here, never all.
            own = head_dim if spec.arch == "qwen3" else {}
            return own | (_qwen_sliding(spec, alternating) if spec.slides else {})
        case "mistral":
            return head_dim | {"sliding_window": spec.sliding_window}
        case "mixtral":
            return head_dim | experts | ({"sliding_window": spec.sliding_window} if spec.slides else {})
        case "phi3":
            return {"sliding_window": spec.sliding_window if spec.slides else None}
        case "gemma":
            return head_dim
        case "gemma2":
            return head_dim | {
                "sliding_window": spec.sliding_window,
                "layer_types": alternating,
                "query_pre_attn_scalar": spec.head_dim,
            }
        case "gemma3":
            return head_dim | {
                "sliding_window": spec.sliding_window,
                "layer_types": alternating,  # five to one in the published models: with few layers, none would be full
                "query_pre_attn_scalar": spec.head_dim,
            }
        case "opt":
            return {"ffn_dim": spec.intermediate_size, "word_embed_proj_dim": spec.hidden_size, "dropout": 0.0}
        case "gpt2":
            return {"n_inner": spec.intermediate_size, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        case "qwen3_moe":
            return head_dim | experts | {"moe_intermediate_size": spec.intermediate_size, "norm_topk_prob": True}
        case "qwen2_moe":
            return {
                "num_experts": spec.num_experts,
                "num_experts_per_tok": spec.experts_per_token,
                "moe_intermediate_size": spec.intermediate_size,
                "shared_expert_intermediate_size": spec.intermediate_size,
            }
        case "gpt_oss":
            rope = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
            rope |= {"original_max_position_embeddings": max(1, spec.max_position_embeddings // 32)}
            layers = {"sliding_window": spec.sliding_window, "layer_types": alternating}
            return head_dim | experts | layers | {"rope_parameters": rope | {"rope_theta": 150_000.0}}
        case "deepseek_v3":
            return _multi_head_latent(spec)
        case "glm4":
            return head_dim
        case "granite":
            return {"attention_multiplier": spec.head_dim**-0.5}  # the class's own default is 1: a saturated softmax
        case "cohere":
            return {"logit_scale": 1.0}  # 1/16 is for a width of 8192; it would make every logit gap tiny here
        case _:
            return {}  # phi, gpt_neox, olmo2, stablelm


def _qwen_sliding(spec: ResolvedSpec, layer_types: list[str]) -> dict[str, Any]:
    return {"use_sliding_window": True, "sliding_window": spec.sliding_window, "layer_types": layer_types}


def _multi_head_latent(spec: ResolvedSpec) -> dict[str, Any]:
    """DeepSeek's attention: keys and values of head_dim each, half as much again turned by position."""
    rotary = max(2, spec.head_dim // 2 // 2 * 2)
    return {
        "qk_nope_head_dim": spec.head_dim,
        "qk_rope_head_dim": rotary,
        "v_head_dim": spec.head_dim,
        "kv_lora_rank": max(8, spec.hidden_size // 4),
        "q_lora_rank": max(8, spec.hidden_size // 2),
        "n_routed_experts": spec.num_experts,
        "num_experts_per_tok": spec.experts_per_token,
        "moe_intermediate_size": spec.intermediate_size,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1 if spec.num_layers > 1 else 0,
    }
