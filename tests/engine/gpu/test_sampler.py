"""Sampling for whole batches on the device chooses what engine/sampler.py chooses row by row."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.gpu.sampler import plain_choice
from engine.gpu.sampling import StepSampler, read_results
from engine.gpu.sampling_batch import sampling_batch
from engine.gpu.uniforms import uniforms
from engine.sampler import sample
from engine.uniform import uniform
from pdserve.errors import BadSampling, ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.step import SampleRequest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 97


def random_request(chance: random.Random, vocab: int = VOCAB) -> SampleRequest:
    """Any mixture of parameters, about half of them off."""

    def maybe(value: float, off: float) -> float:
        return value if chance.random() < 0.5 else off

    params = SamplingParams(
        max_tokens=100,
        temperature=maybe(chance.uniform(0.1, 2.0), 0.0),
        top_p=maybe(chance.uniform(0.05, 1.0), 1.0),
        top_k=int(maybe(chance.randint(1, vocab + 5), 0)),
        min_p=maybe(chance.uniform(0.0, 0.3), 0.0),
        repetition_penalty=maybe(chance.uniform(0.7, 1.6), 1.0),
        presence_penalty=maybe(chance.uniform(-1, 1), 0.0),
        frequency_penalty=maybe(chance.uniform(-1, 1), 0.0),
        seed=chance.getrandbits(64),
        choice_index=chance.randrange(4),
        logit_bias=tuple((chance.randrange(vocab + 9), chance.uniform(-5, 5)) for _ in range(chance.choice([0, 0, 3]))),
        min_tokens=chance.choice([0, 0, 30]),
        stop_token_ids=tuple(chance.sample(range(vocab + 9), 3)),
        logprobs=chance.choice([None, None, 0, 1, 5, 200]),
    )
    prompt = [chance.randrange(vocab + 9) for _ in range(chance.randint(1, 40))]
    outputs = [chance.randrange(vocab) for _ in range(chance.randrange(40))]
    return SampleRequest(params, prompt + outputs, len(prompt))


def on_device(
    logits: Tensor, keys: list[SequenceKey], requests: list[SampleRequest]
) -> list[SampledToken | ServingError]:
    """One step through everything that a runner does."""
    return sampled(StepSampler(logits.shape[1], 64, DEVICE), logits, keys, requests)[0]


def sampled(
    sampler: StepSampler, logits: Tensor, keys: list[SequenceKey], requests: list[SampleRequest]
) -> tuple[list[SampledToken | ServingError], int]:
    """The results, and how many histories were sent."""
    batch = sampler.prepare(keys, requests)
    parts = [torch.from_numpy(part.copy()).to(DEVICE) for part in batch.parts]
    logits = logits.to(DEVICE)
    out = sampler.choose(logits, plain_choice(logits), batch, parts)
    return read_results(out.cpu().numpy(), batch.reads), len(batch.history.cleared)


def names(count: int) -> list[SequenceKey]:
    return [SequenceKey(str(index)) for index in range(count)]


def assert_same(found: list[SampledToken | ServingError], expected: list[SampledToken | ServingError]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(one, SampledToken) and isinstance(other, SampledToken):
            assert one.token_id == other.token_id
            assert (one.logprobs is None) == (other.logprobs is None)
            if one.logprobs is not None and other.logprobs is not None:
                assert one.logprobs.token_id == other.logprobs.token_id
                assert [token for token, _ in one.logprobs.top] == [token for token, _ in other.logprobs.top]
                np.testing.assert_allclose(one.logprobs.logprob, other.logprobs.logprob, atol=1e-9)
                ours, theirs = ([value for _, value in each.logprobs.top] for each in (one, other))  # type: ignore[union-attr]
                np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_mixture_of_parameters(dtype: torch.dtype) -> None:
    """Random parameters, histories and logits; 16-bit logits are full of ties."""
    chance = random.Random(str(dtype))
    for _ in range(25):
        count = chance.randint(1, 12)
        generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
        logits = (torch.randn(count, VOCAB, generator=generator) * chance.uniform(0.5, 8)).to(dtype)
        requests = [random_request(chance) for _ in range(count)]
        assert_same(on_device(logits, names(count), requests), sample(logits, requests))


def test_ties_go_to_the_lower_token() -> None:
    """Equal logits everywhere: greedy, best tokens and top-k take them in order of id."""
    logits = torch.zeros(3, VOCAB)
    logits[1, 40:] = 1.0
    params = [
        SamplingParams(max_tokens=9, logprobs=6),
        SamplingParams(max_tokens=9, logprobs=6, temperature=1.0, top_k=3, top_p=0.5, seed=4),
        SamplingParams(max_tokens=9),
    ]
    requests = [SampleRequest(one, [1], 1) for one in params]
    assert_same(on_device(logits, names(3), requests), sample(logits, requests))


def test_rows_that_cannot_be_sampled_fail_alone() -> None:
    """Not a number, infinity, and every token ruled out; plain or not; the others go on."""
    chance = random.Random(5)
    requests = [SampleRequest(SamplingParams(max_tokens=9), [1], 1), random_request(chance)] * 3
    logits = torch.randn(7, VOCAB)
    logits[0, 3] = logits[1, 50] = float("nan")
    logits[2, 3] = logits[3, 50] = float("inf")
    banned = tuple(range(VOCAB))
    requests.append(SampleRequest(SamplingParams(max_tokens=9, min_tokens=5, stop_token_ids=banned), [1], 1))
    found = on_device(logits, names(7), requests)
    assert_same(found, sample(logits, requests))
    assert [isinstance(one, ServingError) for one in found] == [True] * 4 + [False] * 2 + [True]
    assert isinstance(found[6], BadSampling)


def test_penalties_count_on_the_device() -> None:
    """Over many steps the host sends a history once, and again only where a sequence went another way."""
    chance = random.Random(7)
    requests = []
    for _ in range(4):
        request = random_request(chance)
        params = SamplingParams(max_tokens=99, repetition_penalty=1.3, frequency_penalty=0.4, temperature=1.0, seed=3)
        requests.append(SampleRequest(params, list(request.token_ids), request.num_prompt_tokens))
    sampler = StepSampler(VOCAB, 64, DEVICE)
    known: set[int] = set()  # whose counters the device has
    for turn in range(12):
        logits = torch.randn(4, VOCAB)
        which = chance.sample(range(4), chance.randint(1, 4))
        keys, chosen = [SequenceKey(str(i)) for i in which], [requests[i] for i in which]
        found, sent = sampled(sampler, logits[which], keys, chosen)
        assert sent == len(set(which) - known)
        assert_same(found, sample(logits[which], chosen))
        known |= set(which)
        if turn == 6:  # a step that is lost: its tokens are chosen again
            known -= set(which)
            continue
        for request, result in zip(chosen, found, strict=True):
            assert isinstance(result, SampledToken) and isinstance(request.token_ids, list)
            request.token_ids.append(result.token_id)


def test_uniform_numbers_are_those_of_the_host() -> None:
    """Bit for bit, for seeds of 64 bits and long outputs."""
    chance = random.Random(1)
    triples = [(chance.getrandbits(64), chance.randrange(1 << 20), chance.randrange(1 << 40)) for _ in range(200)]
    triples += [(0, 0, 0), ((1 << 64) - 1, (1 << 32) - 1, 0)]
    array = np.array(triples, dtype=np.uint64)
    found = uniforms(array[:, 0], array[:, 1], array[:, 2])
    assert found.tolist() == [uniform(*triple) for triple in triples]


def test_nothing_is_prepared_for_plain_rows() -> None:
    """Greedy rows need no arrays, and so no copy."""
    assert sampling_batch([SampleRequest(SamplingParams(max_tokens=1), [1], 1)], [0], VOCAB) is None
