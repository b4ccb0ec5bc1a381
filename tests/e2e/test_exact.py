"""Tokens through a whole cluster equal transformers' greedy ones, whatever the shape of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pdserve.v1 import inference_pb2 as pb

LENGTHS = (1, 2, 15, 16, 17, 33, 64, 100, 255, 300, 512, 1000, 2000)
OUTPUT_TOKENS = 16
TIE = 1e-4

SHAPES = {
    "1+1 shm": ("--kv-transport", "shm"),
    "2+1 gloo": ("--prefill", "2", "--kv-transport", "gloo", "--block-size", "32"),
    "1+2 shm, small chunks, no cache": (
        *("--decode", "2", "--max-num-batched-tokens", "64", "--max-num-seqs", "16"),
        *("--block-size", "4", "--no-enable-prefix-caching"),
    ),
    "colocated, small chunks": (
        *("--prefill", "0", "--decode", "1"),
        *("--block-size", "8", "--max-num-batched-tokens", "64"),
    ),
}


@pytest.fixture(scope="module")
def greedy(tiny_model: Path, make_prompts: Any) -> list[tuple[list[int], list[int], list[float]]]:
    """(prompt, transformers' tokens, gap between the two best logits at each)."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    oracle = []
    for ids in make_prompts(1, LENGTHS):
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=OUTPUT_TOKENS,
            min_new_tokens=OUTPUT_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = [logits[0].topk(2).values for logits in out.logits]
        oracle.append((ids, out.sequences[0, len(ids) :].tolist(), [float(b[0] - b[1]) for b in best]))
    return oracle


def first_real_difference(ours: Sequence[int], theirs: Sequence[int], gaps: Sequence[float]) -> int | None:
    """Index of the first token that differs, unless the oracle itself was all but undecided there."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            return None if gaps[index] < TIE else index
    return None


@pytest.fixture(scope="module", params=SHAPES)
def cluster(
    request: pytest.FixtureRequest, serve_in: Callable[..., Any], tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:  # fmt: skip
    """One of each shape, for all tests of tokens."""
    flags = ("--dtype", "float32", *SHAPES[request.param])
    with serve_in(tmp_path_factory.mktemp("exact"), tiny_model, *flags) as server:
        yield server


@pytest.mark.e2e
def test_tokens_equal_transformers_alone_and_in_company(
    cluster: Any, greedy: list[tuple[list[int], list[int], list[float]]], make_request: Callable[..., Any]
) -> None:
    requests = [make_request(ids, OUTPUT_TOKENS, logprobs=2) for ids, _, _ in greedy]
    alone = cluster.generate_all(requests, 1)
    crowded = cluster.generate_all(requests * 3, 32)
    for (ids, theirs, gaps), answer in zip(greedy, alone, strict=True):
        assert first_real_difference(answer.tokens, theirs, gaps) is None, f"prompt of {len(ids)} tokens"
        assert answer.complete.finish_reason == pb.FINISH_REASON_LENGTH
        assert answer.complete.usage.prompt_tokens == len(ids)
        timing = answer.complete.timing
        split = cluster.workers("prefill") != []
        assert (timing.prefill_worker != timing.decode_worker) == split
        phases = timing.queue_s + timing.prefill_s + timing.transfer_s + timing.decode_wait_s + timing.decode_s
        end_to_end = timing.ttft_s + timing.tpot_s * (OUTPUT_TOKENS - 1)
        assert abs(phases - end_to_end) < 1e-3
    assert [a.tokens for a in crowded] == [a.tokens for a in alone] * 3, "company changed tokens"
    workers = {a.complete.timing.prefill_worker for a in crowded} | {a.complete.timing.decode_worker for a in crowded}
    assert workers == {worker["id"] for worker in cluster.ready["workers"]}, "a worker got nothing to do"
    cluster.wait_all_blocks_free()


@pytest.fixture(scope="module")
def sampled() -> list[list[list[int]]]:
    """The first cluster's tokens, once there are any."""
    return []


@pytest.mark.e2e
def test_seeded_sampling_is_the_same_in_every_shape_alone_and_crowded(
    cluster: Any, sampled: list[list[list[int]]], make_request: Callable[..., Any], make_prompts: Any
) -> None:
    """Each prompt under each of the samplings below; alone is asked of the first cluster only."""
    samplings = [
        pb.SamplingParams(temperature=0.8, seed=1),
        pb.SamplingParams(temperature=1.2, top_p=0.9, top_k=40, min_p=0.01, seed=2**64 - 1),
        pb.SamplingParams(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4, seed=3),
        pb.SamplingParams(repetition_penalty=1.2, logit_bias={7: 1.0, 9: -100.0}),
    ]
    prompts = make_prompts(2, (5, 40, 150, 400))
    requests = [make_request(ids, 20, sampling=sampling) for ids in prompts for sampling in samplings]
    if not sampled:
        sampled.append([answer.tokens for answer in cluster.generate_all(requests, 1)])
    assert [answer.tokens for answer in cluster.generate_all(requests, 16)] == sampled[0]
    assert len({tuple(one) for one in sampled[0]}) == len(requests)


@pytest.mark.e2e
def test_a_short_prompt_may_skip_the_trip(
    serve: Callable[..., Any], mock_profile: Path, make_request: Callable[..., Any], make_prompts: Any
) -> None:
    short, long = make_prompts(3, (50, 51))
    flags = ("--mock", str(mock_profile), "--local-prefill-max-tokens", "50", "--max-model-len", "512")
    with serve("", *flags) as server:
        for ids, split in ((short, False), (long, True)):
            timing = server.generate(make_request(ids, 5)).complete.timing
            assert (timing.prefill_worker != timing.decode_worker) == split
            assert (timing.transfer_s > 0.0) <= split
        server.wait_all_blocks_free()
