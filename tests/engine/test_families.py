"""Every family: the tokens and numbers of transformers' own eager generation, and none that depend on the company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deploy.checkpoint import check_checkpoint
from engine.families import TESTED
from engine.kernels import CHOICES

FAMILY_OF = {"llama3": "llama", "gemma3": "gemma3_text"}  # where the made model's name is not its model_type
TIE = 1e-4  # logits closer than this are a tie
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"num_layers": 3, "hidden_size": 88, "intermediate_size": 203, "head_dim": 22, "vocab_size": 515}),
    ("llama", {"num_heads": 5, "num_kv_heads": 1, "head_dim": 18, "hidden_size": 70}),
    ("llama3", {}),
    ("qwen2", {}),
    ("qwen3", {"num_heads": 6, "num_kv_heads": 2, "head_dim": 32}),
    ("mistral", {"sliding_window": 21}),
    ("gemma", {}),
    ("gemma2", {"sliding_window": 21, "num_layers": 3}),
    ("gemma3", {"sliding_window": 21, "num_layers": 3}),
    ("opt", {}),
    ("gpt2", {"num_heads": 3, "hidden_size": 66}),
    ("mixtral", {"sliding_window": 21}),
    ("phi", {}),
    ("phi3", {}),
    ("gpt_neox", {}),
    ("qwen2_moe", {}),
    ("qwen3_moe", {}),
    ("gpt_oss", {"sliding_window": 21}),
    ("deepseek_v3", {}),
    ("olmo2", {}),
    ("glm4", {}),
    ("granite", {}),
    ("cohere", {}),
    ("stablelm", {}),
]
COMMON = {"llama", "qwen2", "qwen3", "mistral", "gemma2", "opt", "gpt2", "mixtral"}  # tried in more ways
IDS = [f"{arch}-{index}" for index, (arch, _) in enumerate(FAMILIES)]


@pytest.mark.parametrize("kernels", CHOICES)
@pytest.mark.parametrize(("arch", "fields"), FAMILIES, ids=IDS)
def test_tokens_and_logprobs_are_those_of_transformers(
    arch: str, fields: dict[str, Any], kernels: str, load_tiny: Any, driver: Any, oracle_logits: Any, random_prompt: Any
) -> None:
    """Mixed steps over shuffled blocks give the oracle's choice at every position, ties apart."""
    model = load_tiny(arch, kernels, **fields)
    running = driver(model, block_size=8)
    chosen = [running.add(random_prompt(length, seed=1), 10, chunk) for length, chunk in ((70, 32), (1, 1), (33, 100))]
    running.add_neighbours(4, model.vocab_size)
    running.run()
    for sequence in chosen:
        expected = oracle_logits(sequence.tokens[:-1], arch, **fields)[len(sequence.prompt) - 1 :]
        found = torch.stack(sequence.logits)
        assert len(sequence.outputs) == 10
        torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)
        short_of_best = expected.max(-1).values - expected[torch.arange(10), torch.tensor(sequence.outputs)]
        assert float(short_of_best.max()) < TIE


@pytest.mark.parametrize("kernels", CHOICES)
@pytest.mark.parametrize(("arch", "fields"), FAMILIES, ids=IDS)
def test_numbers_do_not_depend_on_company_chunks_or_blocks(
    arch: str, fields: dict[str, Any], kernels: str, load_tiny: Any, driver: Any, random_prompt: Any
) -> None:
    """Bit for bit: logits of every sampled token and KV of every position."""
    model = load_tiny(arch, kernels, **fields)
    prompt = random_prompt(45, seed=2)
    alone = _run(driver, model, prompt, chunk=100, block_size=16, neighbours=0)
    ways = ((1, 4, 0), (7, 1, 3), (16, 32, 31), (64, 48, 12))
    for chunk, block_size, neighbours in ways if arch in COMMON else ways[1:3]:
        other = _run(driver, model, prompt, chunk, block_size, neighbours)
        how = f"chunk {chunk}, block size {block_size}, {neighbours} neighbours"
        assert other.outputs == alone.outputs, how
        assert torch.equal(torch.stack(other.logits), torch.stack(alone.logits)), how
        for layer, (ours, expected) in enumerate(zip(other.kv, alone.kv, strict=True)):
            assert torch.equal(ours[0], expected[0]), f"{how}: keys of layer {layer}"
            assert torch.equal(ours[1], expected[1]), f"{how}: values of layer {layer}"


@pytest.mark.parametrize(("arch", "fields"), FAMILIES, ids=IDS)
def test_the_size_of_kv_is_known_before_a_model_is_loaded(
    arch: str, fields: dict[str, Any], load_tiny: Any, tiny_dir: Any
) -> None:
    """To the number, so that `serve` refuses no pool that a worker would take."""
    seen = load_tiny(arch, **fields).kv_layout(1)
    assert check_checkpoint(tiny_dir(arch, **fields)).kv_elements == seen.block_elements


def test_the_table_of_tested_families_says_what_is_tested_here() -> None:
    """Documentation quotes it."""
    assert {FAMILY_OF.get(arch, arch) for arch, _ in FAMILIES} == set(TESTED)


def _run(driver: Any, model: Any, prompt: list[int], chunk: int, block_size: int, neighbours: int) -> Any:
    running = driver(model, block_size=block_size, seed=neighbours)
    running.add_neighbours(neighbours // 2, model.vocab_size)
    sequence = running.add(prompt, 8, chunk)
    running.add_neighbours(neighbours - neighbours // 2, model.vocab_size)
    running.run(until=sequence)
    return sequence
