"""The sampling parameters of a step's rows as arrays, ready for the device. Definitions: engine/sampler.py."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.gpu.splits import Int64s
from engine.gpu.uniforms import uniforms
from scheduling.step import SampleRequest

Float64s = NDArray[np.float64]

INTEGERS = ("rows", "counters", "top_k")
FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency", "numbers")
SPARSE = ("bias_at", "biases", "banned_at")


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """What any row wants: the device skips the rest. Known to the host, so nothing is asked of the device."""

    random: bool
    min_p: bool
    top_k: int  # the highest; 0: none
    top_p: bool
    penalties: bool
    logprobs: int  # the highest number of best tokens; -1: nobody wants log-probabilities


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The rows that are not plainly greedy, S of them."""

    flags: SamplingFlags
    arrays: dict[str, Int64s]  # by name, each of INTEGERS, FLOATS (their bits) and SPARSE

    @property
    def parts(self) -> list[Int64s]:
        """Everything, in the order that `unpack` expects."""
        return list(self.arrays.values())


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """The same on the device; [S] unless it says otherwise."""

    rows: Tensor  # of the logits
    counters: Tensor  # rows of the penalty counters; one that counts nothing where there is no penalty
    top_k: Tensor  # the number of tokens that remain; the vocabulary's size where it is off
    temperature: Tensor  # 1 for greedy rows
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    numbers: Tensor  # uniform random; negative: greedy
    bias_at: Tensor  # [.] of the flat scores [S * V]
    biases: Tensor  # [.]
    banned_at: Tensor  # [.] of the flat scores: end tokens before min_tokens


def is_plain(request: SampleRequest) -> bool:
    """Greedy and nothing else: the highest logit is the answer."""
    sampling = request.sampling
    bare = sampling.greedy and not sampling.has_penalties and not sampling.logit_bias and sampling.logprobs is None
    return bare and not (sampling.min_tokens and _banned(request))


def sampling_batch(requests: Seq[SampleRequest], counters: Seq[int], vocab: int) -> SamplingBatch | None:
    """Parameters of the rows that need more than the highest logit; None where there is no such row.

    Shapes:  one request and one counter row per row of logits; `vocab` columns of logits.
    """
    rows = [row for row, request in enumerate(requests) if not is_plain(request)]
    if not rows:
        return None
    chosen = [requests[row] for row in rows]
    params = [request.sampling for request in chosen]
    names = np.array(
        [(p.seed, p.choice_index, r.output_index) for p, r in zip(params, chosen, strict=True)], dtype=np.uint64
    )
    numbers = uniforms(names[:, 0], names[:, 1], names[:, 2])
    numbers[[p.greedy for p in params]] = -1.0
    limits = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
    biased = [(at * vocab + i, bias) for at, p in enumerate(params) for i, bias in p.logit_bias if i < vocab]
    banned = [at * vocab + i for at, request in enumerate(chosen) for i in _banned(request) if i < vocab]
    floats = {
        "temperature": [1.0 if p.greedy else p.temperature for p in params],
        "top_p": [p.top_p for p in params],
        "min_p": [p.min_p for p in params],
        "repetition": [p.repetition_penalty for p in params],
        "presence": [p.presence_penalty for p in params],
        "frequency": [p.frequency_penalty for p in params],
        "numbers": numbers,
        "biases": [bias for _, bias in biased],
    }
    bits = {name: np.asarray(values, dtype=np.float64).view(np.int64) for name, values in floats.items()}
    integers = {
        "rows": rows, "counters": [counters[row] for row in rows], "top_k": limits,
        "bias_at": [at for at, _ in biased], "banned_at": banned,
    }  # fmt: skip
    known = bits | {name: np.array(values, dtype=np.int64) for name, values in integers.items()}
    flags = SamplingFlags(
        random=any(not p.greedy for p in params),
        min_p=any(p.min_p > 0.0 and not p.greedy for p in params),
        top_k=max((k for k, p in zip(limits, params, strict=True) if k < vocab and not p.greedy), default=0),
        top_p=any(p.top_p < 1.0 and not p.greedy for p in params),
        penalties=any(p.has_penalties for p in params),
        logprobs=max(-1 if p.logprobs is None else min(p.logprobs, vocab) for p in params),
    )
    return SamplingBatch(flags, {name: known[name] for name in (*INTEGERS, *FLOATS, *SPARSE)})


def unpack(parts: Seq[Tensor]) -> SamplingTensors:
    """`SamplingBatch.parts` on the device, with their types again. No copy."""
    named = dict(zip((*INTEGERS, *FLOATS, *SPARSE), parts, strict=True))
    doubles = {name: named[name].view(torch.float64) for name in (*FLOATS, "biases")}
    return SamplingTensors(**(named | doubles))


def _banned(request: SampleRequest) -> tuple[int, ...]:
    """Tokens that would end the sequence too early."""
    sampling = request.sampling
    return sampling.end_token_ids if request.output_index < sampling.min_tokens else ()
