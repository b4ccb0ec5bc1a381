"""Sampling parameters mean what vLLM's do, and a row's token depends on nothing but the row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from engine.sampler import sample
from engine.uniform import philox, uniform
from pdserve.errors import BadSampling, ServingError
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.step import SampleRequest

LOGITS = [2.0, 1.0, 0.5, -1.0, -3.0]


def _token(row: list[float], prompt: list[int] | None = None, outputs: list[int] | None = None, **params: Any) -> int:
    result = _result(row, prompt, outputs, **params)
    assert isinstance(result, SampledToken)
    return result.token_id


def _result(
    row: list[float], prompt: list[int] | None = None, outputs: list[int] | None = None, **params: Any
) -> SampledToken | ServingError:
    prompt, outputs = prompt or [0], outputs or []
    request = SampleRequest(SamplingParams(**{"max_tokens": 100, **params}), prompt + outputs, len(prompt))
    return sample(torch.tensor([row]), [request])[0]


def _counts(row: list[float], draws: int = 2000, **params: Any) -> list[float]:
    """Share of each token over many seeds."""
    requests = [SampleRequest(SamplingParams(max_tokens=1, seed=seed, **params), [0], 1) for seed in range(draws)]
    chosen = [result for result in sample(torch.tensor([row]).expand(draws, -1), requests)]
    ids = [result.token_id for result in chosen if isinstance(result, SampledToken)]
    assert len(ids) == draws
    return (np.bincount(ids, minlength=len(row)) / draws).tolist()


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of Random123's philox4x32-10."""
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_numbers_differ_by_every_part_of_their_name_and_are_even() -> None:
    """Seed (64 bits), choice and output index each name another number."""
    names = [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1 << 32), (2**64 - 1, 0, 0)]
    assert len({uniform(*name) for name in names}) == len(names)
    numbers = np.array([uniform(7, 0, index) for index in range(4000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02 and abs(numbers.var() - 1 / 12) < 0.005


def test_greedy_is_the_highest_logit_and_the_first_of_equals() -> None:
    """Temperature 0."""
    assert _token(LOGITS) == 0
    assert _token([1.0, 3.0, 3.0]) == 1
    assert _token([1.0, 3.0, 3.0], logprobs=0) == 1


def test_temperature_one_draws_from_the_softmax() -> None:
    """2,000 draws lie within four standard deviations of each probability."""
    expected = torch.tensor(LOGITS).softmax(-1).tolist()
    for share, probability in zip(_counts(LOGITS, temperature=1.0), expected, strict=True):
        assert abs(share - probability) < 4 * math.sqrt(probability / 2000)


def test_temperature_sharpens_and_a_tiny_one_is_greedy() -> None:
    """Logits are divided by it; no overflow at the small end."""
    expected = (torch.tensor(LOGITS) / 0.5).softmax(-1)[0].item()
    assert abs(_counts(LOGITS, temperature=0.5)[0] - expected) < 0.04
    assert _counts(LOGITS, draws=50, temperature=1e-300)[0] == 1.0


def test_top_k_keeps_the_k_best_and_their_ties() -> None:
    """0 and more than the vocabulary are off."""
    assert [share > 0 for share in _counts(LOGITS, temperature=1.0, top_k=2)] == [True, True, False, False, False]
    tied = [share > 0 for share in _counts([2.0, 1.0, 1.0, 0.0], temperature=1.0, top_k=2)]
    assert tied == [True, True, True, False]
    assert _counts(LOGITS, temperature=1.0, top_k=99) == _counts(LOGITS, temperature=1.0)


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    """Probabilities 0.5, 0.3, 0.2: the token that crosses p stays, and at least one does."""
    row = [math.log(0.5), math.log(0.3), math.log(0.2)]
    for top_p, kept in ((0.45, 1), (0.6, 2), (0.85, 3), (1e-9, 1)):
        shares = _counts(row, draws=400, temperature=1.0, top_p=top_p)
        assert sum(share > 0 for share in shares) == kept, top_p


def test_top_p_counts_after_top_k() -> None:
    """With top_k 2 of 0.5, 0.3, 0.2 the first has 0.625 of what is left: p = 0.6 keeps it alone."""
    row = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert _counts(row, draws=200, temperature=1.0, top_k=2, top_p=0.6)[0] == 1.0


def test_min_p_is_a_share_of_the_best_after_temperature() -> None:
    """Probabilities 0.5, 0.3, 0.2 at temperature 1: a share of 0.5 keeps two; at 0.5, where they square, one."""
    row = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert sum(share > 0 for share in _counts(row, draws=400, temperature=1.0, min_p=0.5)) == 2
    assert sum(share > 0 for share in _counts(row, draws=400, temperature=0.5, min_p=0.5)) == 1


def test_repetition_penalty_divides_the_positive_and_multiplies_the_negative() -> None:
    """Over prompt and output, as in CTRL."""
    assert _token([2.0, 1.9], prompt=[0], repetition_penalty=1.1) == 1
    assert _token([2.0, 1.9], prompt=[5], repetition_penalty=1.1) == 0  # beyond the vocabulary: ignored
    assert _token([2.0, 1.9], prompt=[1], outputs=[0], repetition_penalty=1.1) == 0
    assert _token([-1.0, -1.05], prompt=[0], repetition_penalty=1.1) == 1


def test_presence_and_frequency_penalties_look_at_the_output_only() -> None:
    """Presence counts once, frequency each time."""
    assert _token([2.0, 1.5], prompt=[0, 0], presence_penalty=1.0, frequency_penalty=1.0) == 0
    assert _token([2.0, 1.5], outputs=[0], presence_penalty=0.6) == 1
    assert _token([2.0, 1.5], outputs=[0, 0], presence_penalty=0.4) == 0
    assert _token([2.0, 1.5], outputs=[0, 0], frequency_penalty=0.3) == 1
    assert _token([2.0, 1.5], outputs=[0], frequency_penalty=0.3) == 0


def test_logit_bias_is_added() -> None:
    """Greedy too; ids beyond the logits are ignored."""
    assert _token(LOGITS, logit_bias=((4, 5.5), (99, 100.0))) == 4


def test_end_tokens_are_impossible_before_min_tokens() -> None:
    """Both the model's and the client's; from min_tokens on they are possible."""
    ends = {"eos_token_ids": (0,), "stop_token_ids": (1,), "min_tokens": 2}
    assert _token(LOGITS, outputs=[3], **ends) == 2
    assert _token(LOGITS, outputs=[3, 3], **ends) == 0
    assert _counts(LOGITS, temperature=1.0, **ends)[:2] == [0.0, 0.0]


def test_logprobs_are_of_the_raw_distribution() -> None:
    """Whatever the sampling parameters did; best first, ties by id."""
    result = _result(LOGITS, temperature=1.0, seed=3, top_k=1, logit_bias=((2, 9.0),), logprobs=3)
    assert isinstance(result, SampledToken) and result.logprobs is not None
    expected = torch.tensor(LOGITS, dtype=torch.float64).log_softmax(-1).tolist()
    assert result.token_id == 2
    assert result.logprobs.logprob == pytest.approx(expected[2], abs=1e-12)
    assert [token_id for token_id, _ in result.logprobs.top] == [0, 1, 2]
    assert [logprob for _, logprob in result.logprobs.top] == pytest.approx(expected[:3], abs=1e-12)
    tied = _result([1.0, 2.0, 2.0, 2.0], logprobs=2)
    assert isinstance(tied, SampledToken) and tied.logprobs is not None
    assert [token_id for token_id, _ in tied.logprobs.top] == [1, 2]


def test_a_broken_row_fails_alone() -> None:
    """Not-a-number, and nothing but minus infinity; the neighbour gets its token."""
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[0.0, nan, 1.0], [-inf, -inf, -inf], [0.0, 2.0, 1.0], [0.0, inf, 1.0]])
    for params in ({}, {"temperature": 1.0, "logprobs": 1}):
        request = SampleRequest(SamplingParams(max_tokens=1, **params), [0], 1)
        results = sample(rows, [request] * 4)
        assert [isinstance(result, ServingError) for result in results] == [True, True, False, True]
        assert "not finite" in str(results[0])


def test_parameters_that_rule_everything_out_are_an_error_of_the_request() -> None:
    """Every token is an end token, before min_tokens."""
    result = _result([1.0, 2.0], eos_token_ids=(0, 1), min_tokens=1)
    assert isinstance(result, BadSampling)


def test_a_rows_token_does_not_depend_on_the_batch() -> None:
    """The same request among others, at any row, draws the same token with the same logprobs."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 300, generator=generator)
    params = SamplingParams(
        max_tokens=9, temperature=0.9, top_p=0.9, top_k=50, min_p=0.01, seed=11, logprobs=4, repetition_penalty=1.2
    )
    requests = [SampleRequest(params, [1, 2, 3, row], 2) for row in range(9)]
    together = sample(rows, requests)
    backwards = sample(rows.flip(0), requests[::-1])[::-1]
    alone = [sample(rows[row : row + 1], [requests[row]])[0] for row in range(9)]
    assert together == backwards == alone
