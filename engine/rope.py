"""Rotary positions that do not depend on the company.

Some variants choose their frequencies by the longest position of the *call*, so that one long sequence would turn
everyone's keys. They are fixed once, for the longest sequence that may come; short prompts then differ from a run that
never sees a long one, which is the price of KV that stays valid while its sequence grows. vLLM does the same.
"""

from __future__ import annotations

from typing import Any

import torch

VARIANTS = ("dynamic", "longrope")


def fix_rotary(module: Any, max_model_len: int) -> None:
    """Let every rotary module decide for `max_model_len`, and never again. Called once, after loading."""
    for part in module.modules():
        kinds = getattr(part, "rope_type", None)
        if isinstance(kinds, str):
            if any(variant in kinds for variant in VARIANTS):
                _decide(part, max_model_len, {})
                part.rope_type = "default"
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if any(variant in kind for variant in VARIANTS):
                    _decide(part, max_model_len, {"layer_type": layer_type})
                    part.rope_type = {**part.rope_type, layer_type: "default"}


def _decide(rotary: Any, max_model_len: int, layer_type: dict[str, str]) -> None:
    """One call with the longest position: transformers' `dynamic_rope_update` keeps what it computes for it."""
    buffer = next(rotary.buffers())
    positions = torch.tensor([[max_model_len - 1]], device=buffer.device)
    rotary(torch.zeros(1, device=buffer.device), positions, **layer_type)
