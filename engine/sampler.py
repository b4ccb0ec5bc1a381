"""Choosing tokens from logits. Each row is its own affair: nothing here depends on the batch.

    raw logits -> logprobs (reported)
        |-> penalties, logit bias, end tokens out before min_tokens -> greedy
                -> temperature -> min_p -> top_k, top_p -> one uniform number, inverse CDF in order of token id

Definitions and order are vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.uniform import uniform
from pdserve.errors import BadSampling, ServingError
from pdserve.sampling import SampledToken, SamplingParams, TokenLogprobs
from scheduling.step import SampleRequest

Float64s = NDArray[np.float64]


def sample(logits: Tensor, requests: Seq[SampleRequest]) -> list[SampledToken | ServingError]:
    """One token per row, or why there is none.

    Shapes:  logits [n, V], any float dtype; one request per row.
    """
    assert logits.shape[0] == len(requests)
    best, token_ids = (part.tolist() for part in logits.max(-1))
    results: list[SampledToken | ServingError] = []
    for row, (request, top, token_id) in enumerate(zip(requests, best, token_ids, strict=True)):
        if not np.isfinite(top):
            results.append(ServingError(f"the model's logits are not finite (highest is {top})"))
        elif _is_plain(request):
            results.append(SampledToken(token_id))
        else:
            results.append(_sample_row(logits[row].double().cpu().numpy(), request))
    return results


def _is_plain(request: SampleRequest) -> bool:
    """Greedy and nothing else: the highest logit is the answer."""
    sampling = request.sampling
    bare = sampling.greedy and not sampling.has_penalties and not sampling.logit_bias and sampling.logprobs is None
    return bare and not _too_early_to_end(request)


def _too_early_to_end(request: SampleRequest) -> bool:
    return request.output_index < request.sampling.min_tokens and bool(request.sampling.end_token_ids)


def _sample_row(raw: Float64s, request: SampleRequest) -> SampledToken | ServingError:
    sampling = request.sampling
    scores = raw.copy()
    _penalize(scores, request)
    for token_id, bias in sampling.logit_bias:
        if token_id < len(scores):
            scores[token_id] += bias
    if _too_early_to_end(request):
        scores[[token_id for token_id in sampling.end_token_ids if token_id < len(scores)]] = -np.inf
    if not np.isfinite(scores.max()):
        return BadSampling("no token is possible: every one is ruled out by the sampling parameters")
    if sampling.greedy:
        token_id = int(scores.argmax())
    else:
        number = uniform(sampling.seed, sampling.choice_index, request.output_index)
        token_id = _draw(_distribution(scores, sampling), number)
    logprobs = None if sampling.logprobs is None else token_logprobs(raw, token_id, sampling.logprobs)
    return SampledToken(token_id, logprobs)


def _penalize(scores: Float64s, request: SampleRequest) -> None:
    """Repetition over prompt and output; presence and frequency over output. In place."""
    sampling = request.sampling
    if not sampling.has_penalties:
        return
    token_ids = np.asarray(request.token_ids, dtype=np.int64)
    token_ids, outputs = token_ids[token_ids < len(scores)], token_ids[request.num_prompt_tokens :]
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(token_ids)
        of_seen = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = np.where(of_seen > 0, of_seen / penalty, of_seen * penalty)
    chosen, counts = np.unique(outputs[outputs < len(scores)], return_counts=True)
    scores[chosen] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def _distribution(scores: Float64s, sampling: SamplingParams) -> Float64s:
    """[V], weights that sum to about 1; zero where a token is out."""
    weights: Float64s = np.exp((scores - scores.max()) / sampling.temperature)
    if sampling.min_p > 0.0:
        weights[weights < sampling.min_p] = 0.0  # the highest weight is 1
    if 0 < sampling.top_k < len(weights):
        least = np.partition(weights, -sampling.top_k)[-sampling.top_k]
        weights[weights < least] = 0.0  # ties with the k-th stay, as in vLLM
    weights /= weights.sum()
    if sampling.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        out = order[before >= sampling.top_p]
        weights[out[out != order[0]]] = 0.0
    return weights


def _draw(weights: Float64s, number: float) -> int:
    """Inverse CDF over the token ids in order; never a token of weight 0."""
    possible = np.flatnonzero(weights)
    edges = np.cumsum(weights[possible])
    at = int(np.searchsorted(edges, number * edges[-1], side="right"))
    return int(possible[min(at, len(possible) - 1)])


def token_logprobs(raw: Float64s, token_id: int, count: int) -> TokenLogprobs:
    """The chosen token's log-probability and the `count` best, of the model's own distribution."""
    highest = raw.max()
    logprobs = raw - highest - np.log(np.exp(raw - highest).sum())
    count = min(count, len(raw))
    top: tuple[tuple[int, float], ...] = ()
    if count:
        least = np.partition(raw, -count)[-count]
        candidates = np.flatnonzero(raw >= least)
        best = candidates[np.argsort(-raw[candidates], kind="stable")][:count]
        top = tuple((int(i), float(logprobs[i])) for i in best)
    return TokenLogprobs(token_id, float(logprobs[token_id]), top)
