"""Attention of one sequence over keys and values that lie side by side: the arithmetic that others must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention.interface import AttentionCall


def attend_dense(query: Tensor, key: Tensor, value: Tensor, start: int, call: AttentionCall) -> Tensor:
    """Causal attention of the last positions of one sequence.

    Shapes:  query [H, n, Dk] at positions [start, start + n); key [K, start + n, Dk]; value [K, start + n, Dv];
             returns [H, n, Dv]. H is a multiple of K; Dk and Dv may differ.
    """
    mask = visible(query.shape[1], key.shape[1], start, call.window, query.device)
    if call.softcap is None and call.sinks is None:
        grouped = query.shape[0] != key.shape[0]
        out = F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=call.scale, enable_gqa=grouped
        )
        return out[0]
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    scores = (query @ key.transpose(1, 2)).float() * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    if call.sinks is None:
        return scores.softmax(-1).to(value.dtype) @ value
    sinks = call.sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    return weights.to(value.dtype) @ value


def visible(num_queries: int, num_keys: int, start: int, window: int | None, device: torch.device) -> Tensor | None:
    """[num_queries, num_keys] of bool, true where a query sees a key; None where every query sees every key."""
    if num_queries == 1 and (window is None or num_keys <= window):
        return None
    query_at = torch.arange(start, start + num_queries, device=device)[:, None]
    key_at = torch.arange(num_keys, device=device)[None]
    seen = key_at <= query_at
    return seen if window is None else seen & (key_at > query_at - window)
