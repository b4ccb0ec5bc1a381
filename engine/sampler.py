"""Choosing tokens from logits. Each row is its own affair: nothing here depends on the batch.

    raw logits -> logprobs (reported)
        |-> penalties, logit bias, end tokens out before min_tokens, what the constraint does not allow out -> greedy
                -> temperature -> min_p -> top_k, top_p -> one uniform number, inverse CDF in order of token id

Definitions and order are vLLM's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
from torch import Tensor

from engine.grammar.mask_thread import NO_MASKS, Mask
from engine.selection import Flags, Float64s, draw, drop_beyond, flags_of, highest, keep
from engine.uniform import uniform
from pdserve.errors import BadSampling, ServingError
from pdserve.sampling import SampledToken, SamplingParams, TokenLogprobs
from scheduling.step import SampleRequest


def sample(
    logits: Tensor, requests: Seq[SampleRequest], masks: Mapping[int, Mask] = NO_MASKS
) -> list[SampledToken | ServingError]:
    """One token per row, or why there is none.

    Shapes:  logits [n, V], any float dtype; one request per row; one mask per row that has a matcher.
    """
    assert logits.shape[0] == len(requests)
    best, token_ids = (part.tolist() for part in logits.max(-1))
    results: list[SampledToken | ServingError] = []
    for row, (request, top, token_id) in enumerate(zip(requests, best, token_ids, strict=True)):
        if not math.isfinite(top):
            results.append(ServingError(f"the model's logits are not finite (highest is {top})"))
        elif _is_plain(request):
            results.append(SampledToken(token_id))
        elif request.matcher is None:
            results.append(_sample_row(logits[row].double().cpu().numpy(), request))
        else:
            results.append(_sample_constrained(logits[row], request, masks[row]))
    return results


def _sample_constrained(logits: Tensor, request: SampleRequest, mask: Mask) -> SampledToken | ServingError:
    if isinstance(mask, ServingError):
        return mask
    allowed = flags_of(mask, len(logits))
    if request.sampling.logprobs is None and np.count_nonzero(allowed) == 1:  # as in most of a fixed key
        return SampledToken(int(allowed.argmax()))
    return _sample_row(logits.double().cpu().numpy(), request, allowed)


def _is_plain(request: SampleRequest) -> bool:
    """Greedy and nothing else: the highest logit is the answer."""
    if request.always_plain:
        return True
    sampling = request.sampling
    bare = sampling.greedy and not sampling.has_penalties and not sampling.logit_bias and sampling.logprobs is None
    return bare and request.matcher is None and not _too_early_to_end(request)


def _too_early_to_end(request: SampleRequest) -> bool:
    return request.output_index < request.sampling.min_tokens and bool(request.sampling.end_token_ids)


def _sample_row(raw: Float64s, request: SampleRequest, allowed: Flags | None = None) -> SampledToken | ServingError:
    """`allowed`: the tokens that a constraint leaves; None where there is none."""
    sampling = request.sampling
    scores, token_ids = _bent(raw, request), None  # all
    if allowed is not None:
        scores, token_ids = keep(scores, allowed)
    best = float(scores.max(initial=-np.inf))
    if not np.isfinite(best):
        return BadSampling("no token is possible: every one is ruled out by the sampling parameters")
    if sampling.greedy:
        chosen = int(scores.argmax())
    else:
        number = uniform(sampling.seed, sampling.choice_index, request.output_index)
        chosen = _choose(scores, best, sampling, number)
    token_id = chosen if token_ids is None else int(token_ids[chosen])
    logprobs = None if sampling.logprobs is None else token_logprobs(raw, token_id, sampling.logprobs)
    return SampledToken(token_id, logprobs)


def _bent(raw: Float64s, request: SampleRequest) -> Float64s:
    """The scores to choose by: a copy where any parameter changes one."""
    sampling, early = request.sampling, _too_early_to_end(request)
    if not (sampling.has_penalties or sampling.logit_bias or early):
        return raw
    scores = raw.copy()
    _penalize(scores, request)
    for token_id, bias in sampling.logit_bias:
        if token_id < len(scores):
            scores[token_id] += bias
    if early:
        scores[[token_id for token_id in sampling.end_token_ids if token_id < len(scores)]] = -np.inf
    return scores


def _penalize(scores: Float64s, request: SampleRequest) -> None:
    """Repetition over prompt and output; presence and frequency over output. In place."""
    sampling = request.sampling
    if not sampling.has_penalties:
        return
    token_ids = np.asarray(request.token_ids, dtype=np.int64)
    if sampling.repetition_penalty != 1.0:
        seen = token_ids[token_ids < len(scores)]  # one that is there twice is set twice to the same
        of_seen = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = np.where(of_seen > 0, of_seen / penalty, of_seen * penalty)
    if sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0:
        outputs = token_ids[request.num_prompt_tokens :]
        chosen, counts = np.unique(outputs[outputs < len(scores)], return_counts=True)
        scores[chosen] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def _choose(scores: Float64s, best: float, sampling: SamplingParams, number: float) -> int:
    """The token at `number` of the distribution that the scores and the parameters make. `best`: the highest score."""
    token_ids = None  # all
    if 0 < sampling.top_k < len(scores):
        token_ids = highest(scores, sampling.top_k)  # ties with the k-th stay, as in vLLM
        scores = scores[token_ids]
    weights = scores - best
    if sampling.temperature != 1.0:
        weights /= sampling.temperature
    np.exp(weights, out=weights)  # the highest weight is 1
    if sampling.min_p > 0.0:
        weights[weights < sampling.min_p] = 0.0
    if sampling.top_p < 1.0:
        drop_beyond(weights, sampling.top_p)
    at = draw(weights, number)
    return at if token_ids is None else int(token_ids[at])


def token_logprobs(raw: Float64s, token_id: int, count: int) -> TokenLogprobs:
    """The chosen token's log-probability and the `count` best, of the model's own distribution."""
    best = float(raw.max())
    shifted = raw - best
    total = float(np.log(np.exp(shifted, out=shifted).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if count:
        candidates = highest(raw, count)
        ordered = candidates[np.argsort(-raw[candidates], kind="stable")][:count]
        top = tuple((int(i), float(raw[i]) - best - total) for i in ordered)
    return TokenLogprobs(token_id, float(raw[token_id]) - best - total, top)
