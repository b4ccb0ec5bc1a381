"""Which model families were tried: what documentation quotes and what a test proves. Names are `model_type`."""

from __future__ import annotations

TESTED = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "opt", "gpt2", "mixtral", "phi", "phi3"),
    *("gpt_neox", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmo2", "glm4", "granite", "cohere", "stablelm"),
)
"""Tokens equal transformers' eager generation, and in deterministic mode do not depend on the company, bit for bit."""

REFUSED = {
    "bloom": "attention of its own, with position biases",
    "gptj": "attention of its own",
    "gpt_neo": "attention of its own",
    "falcon": "attention of its own",
    "mpt": "attention of its own, with position biases",
    "codegen": "attention of its own",
    "mamba": "no attention: state between tokens",
    "mamba2": "no attention: state between tokens",
    "rwkv": "no attention: state between tokens",
    "jamba": "some layers carry state between tokens",
    "recurrent_gemma": "some layers carry state between tokens",
    "qwen3_next": "some layers are linear attention",
    "lfm2": "some layers are convolutions over tokens",
    "falcon_h1": "every layer carries state beside its attention",
    "diffllama": "two attentions in every layer",
}
"""Refused when loaded, by what the trial run saw, and why. Any other family is tried the same way."""
