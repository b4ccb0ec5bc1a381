"""Attention folded KV tile by KV tile: running maximum, sum and weighted values.

    m' = max(m, rowmax)   p = exp(scores - m')   a = exp(m - m')
    l  = l * a + rowsum(p)                        acc = acc * a + p [R, 64] @ value tile [64, Dv]

A tile that a query sees nothing of leaves its m, l and acc as they were, bit for bit (p is 0, a is 1).

Source: online softmax (Milakov and Gimelshein 2018); FlashAttention-2 (Dao 2023), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = -1e30  # a hidden score, and the running maximum before any key: finite, or inf - inf would be computed
LEAST_EXPONENT = -80.0  # exp of less is below the smallest normal number, nearly


class OnlineSoftmax:
    """Running maximum, sum and weighted values of a group's rows."""

    def __init__(
        self,
        lead: tuple[int, int],
        rows: int,
        value_size: int,
        sinks: Tensor | None,
        share: int,
        tokens: int,
        many: bool,
    ) -> None:
        self._many = many
        self._sum = torch.zeros(*lead, rows, 1)
        self._values = torch.zeros(*lead, rows, value_size)
        self._max = torch.full((*lead, rows, 1), LOWEST)
        if sinks is not None:  # one more score, already folded: its weight is exp(sink - sink) = 1, its value 0
            of_head = sinks.view(-1, 1, share).expand(-1, tokens, -1).reshape(-1, tokens * share)  # [K, tokens * G]
            self._max[..., : tokens * share, 0] = of_head if many else of_head[:, None]
            self._sum[..., : tokens * share, 0] = 1

    def fold(self, scores: Tensor, value: Tensor, active: slice, hidden: Tensor | None) -> None:
        """Take one KV tile in; `scores` is overwritten.

        Shapes:  scores [*lead with only active tiles, R, 64], LOWEST where `hidden`, which broadcasts to it;
                 value [sequences, K, 64, Dv].
        """
        here = active if self._many else (slice(None), active)
        old, total, values = self._max[here], self._sum[here], self._values[here]
        new = torch.maximum(old, scores.amax(-1, keepdim=True))
        # The clamp keeps exp off its path for results that underflow, 13 times slower here. What it changes is a
        # weight below 1e-34 of the highest, in every company alike.
        weights = scores.sub_(new).clamp_min_(LEAST_EXPONENT).exp_()
        if hidden is not None:
            weights.masked_fill_(hidden, 0)
        scale = old.sub_(new).clamp_min_(LEAST_EXPONENT).exp_()
        total.mul_(scale).add_(weights.sum(-1, keepdim=True))
        values.mul_(scale)
        if self._many:
            values.flatten(0, 1).baddbmm_(weights.flatten(0, 1), value.flatten(0, 1))
        else:
            for head in range(len(values)):
                values[head].baddbmm_(weights[head], value[0, head].expand(values.shape[1], -1, -1))
        old.copy_(new)

    def result(self) -> Tensor:
        """[*lead, R, Dv]."""
        return self._values / self._sum
