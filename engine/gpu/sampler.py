"""Choosing tokens on the device: engine/sampler.py's definitions for whole batches, without asking the device anything.

    raw logits [n, V] ─ finite? ─ argmax ──────────────────────────────> plain rows
        └ other rows, in float64: penalties, bias, banned ─ argmax or draw ─> their tokens ─ log-probabilities

Written in torch operations, so that the CPU tests compare it with engine/sampler.py, token by token. Sums run in
another order on a device, so a random number within 1e-13 of an edge may choose the neighbour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.gpu.penalties import PenaltyCounters
from engine.gpu.sampling_batch import SamplingFlags, SamplingTensors

NOT_A_NUMBER, INFINITE, NOTHING_POSSIBLE = -1, -2, -3  # in place of a token


def plain_choice(logits: Tensor) -> Tensor:
    """[n] int64: the highest logit's token, the first of several, or why there is none."""
    best, token_ids = logits.max(-1)
    return torch.where(best.isfinite(), token_ids, torch.where(best.isnan(), NOT_A_NUMBER, INFINITE))


def choose(
    logits: Tensor, plain: Tensor, tensors: SamplingTensors, flags: SamplingFlags, counters: PenaltyCounters
) -> Tensor:
    """Choose for every row; rows that are not in `tensors` are plain.

    Shapes:  logits [n, V]; plain [n], from plain_choice; returns [n, 1 or 2 + 2 * flags.logprobs] int64: the token,
             or why there is none; then the bits (float64) of its log-probability; then the best tokens; then the bits
             of theirs.
    Cost:    about ten arrays of [S, V] float64 for the S rows that are not plain.
    """
    raw = logits[tensors.rows].double()
    scores = _bent(raw, tensors, flags, counters)
    highest = scores.amax(-1, keepdim=True)
    chosen = scores.argmax(-1)
    if flags.random:
        drawn = _draw(_distribution(scores, highest, tensors, flags), tensors.numbers)
        chosen = torch.where(tensors.numbers < 0, chosen, drawn)
    if flags.penalties:
        counters.count(tensors.counters, chosen)
    of_rows = plain[tensors.rows]
    problem = torch.where(of_rows < 0, of_rows, NOTHING_POSSIBLE)
    fine = (of_rows >= 0) & highest[:, 0].isfinite()
    tokens = plain.index_put((tensors.rows,), torch.where(fine, chosen, problem))
    if flags.logprobs < 0:
        return tokens[:, None]
    out = plain.new_zeros(len(plain), 2 + 2 * flags.logprobs)
    out[:, 0] = tokens
    out[tensors.rows, 1:] = _logprobs(raw, chosen, flags.logprobs)
    return out


def _bent(raw: Tensor, tensors: SamplingTensors, flags: SamplingFlags, counters: PenaltyCounters) -> Tensor:
    """Scores after penalties, logit bias, and end tokens out before min_tokens."""
    scores = raw
    if flags.penalties:
        penalty = tensors.repetition[:, None]
        stretched = torch.where(scores > 0, scores / penalty, scores * penalty)
        scores = torch.where(counters.seen[tensors.counters], stretched, scores)
        outputs = counters.outputs[tensors.counters]
        less = tensors.frequency[:, None] * outputs + tensors.presence[:, None]
        scores = torch.where(outputs > 0, scores - less, scores)
    if len(tensors.bias_at):
        scores = scores.view(-1).index_add(0, tensors.bias_at, tensors.biases).view_as(scores)
    if len(tensors.banned_at):
        scores = scores.view(-1).index_fill(0, tensors.banned_at, float("-inf")).view_as(scores)
    return scores


def _distribution(scores: Tensor, highest: Tensor, tensors: SamplingTensors, flags: SamplingFlags) -> Tensor:
    """[S, V] weights; zero where a token is out."""
    weights = torch.exp((scores - highest) / tensors.temperature[:, None])
    if flags.min_p:
        weights = torch.where(weights < tensors.min_p[:, None], 0.0, weights)
    if flags.top_p:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    elif flags.top_k:
        ordered = weights.topk(flags.top_k, -1).values
    else:
        return weights
    if flags.top_k:
        places = tensors.top_k.clamp(max=ordered.shape[1])[:, None] - 1
        is_on = (tensors.top_k < scores.shape[1])[:, None]
        least = torch.where(is_on, ordered.gather(1, places), 0.0)
        weights = torch.where(weights < least, 0.0, weights)  # ties with the k-th stay
        ordered = torch.where(ordered < least, 0.0, ordered)
    if flags.top_p:
        shares = ordered / weights.sum(-1, keepdim=True)
        before = shares.cumsum(-1) - shares
        out = (before >= tensors.top_p[:, None]) & (tensors.top_p < 1.0)[:, None]
        out[:, 0].fill_(False)
        weights = weights.scatter(1, order, torch.where(out, 0.0, ordered))
    return weights


def _draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """Inverse CDF over the token ids in order; never a token of weight 0."""
    edges = weights.cumsum(-1)
    possible = weights > 0
    hit = possible & (edges > numbers[:, None] * edges[:, -1:])
    ids = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(possible, ids, 0).amax(-1)
    return torch.where(hit.any(-1), hit.to(torch.uint8).argmax(-1), last)


def _logprobs(raw: Tensor, chosen: Tensor, count: int) -> Tensor:
    """[S, 1 + 2 * count] int64: see `choose`."""
    highest = raw.amax(-1, keepdim=True)
    norm = highest + (raw - highest).exp().sum(-1, keepdim=True).log()
    parts = [(raw.gather(1, chosen[:, None]) - norm).view(torch.int64)]
    if count:
        best = _best(raw, count)
        parts += [best, (raw.gather(1, best) - norm).view(torch.int64)]
    return torch.cat(parts, 1)


def _best(raw: Tensor, count: int) -> Tensor:
    """[S, count] tokens of the highest logits, the lower id first among equals: topk alone promises no order there.

    A logit has at most 32 bits of its own: they and the id make one integer, and no two are equal.
    """
    bits = (raw.float() + 0.0).view(torch.int32)  # + 0: there is one zero
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    ids = torch.arange(raw.shape[1], device=raw.device)
    keys = (ordered << 32) | (0xFFFFFFFF - ids)
    return 0xFFFFFFFF - (keys.topk(count, -1).values & 0xFFFFFFFF)
