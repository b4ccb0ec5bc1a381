"""The runner behind StepRunner: sampling however batched, failures that stay alone, other dtypes, generate itself."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.kv_pool import KvPool
from engine.model import load_model
from engine.runner import TorchRunner
from engine.sizing import default_kv_bytes, num_kv_blocks
from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.step import SampleRequest, SequenceStep


def test_greedy_tokens_equal_generate(load_tiny: Any, tiny_dir: Any, driver: Any, random_prompt: Any) -> None:
    """transformers' generate with its own cache, 40 tokens; a first difference must be a tie."""
    reference = AutoModelForCausalLM.from_pretrained(
        tiny_dir("qwen3"), dtype=torch.float32, attn_implementation="eager"
    )
    for length in (3, 50):
        prompt = random_prompt(length)
        out = reference.generate(
            torch.tensor([prompt]),
            **{"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0},
            **{"return_dict_in_generate": True, "output_logits": True},
        )
        running = driver(load_tiny("qwen3"))
        sequence = running.add(prompt, 40, chunk=16)
        running.add_neighbours(3, 512)
        running.run()
        expected = out.sequences[0, length:].tolist()
        different = [i for i, pair in enumerate(zip(sequence.outputs, expected, strict=True)) if pair[0] != pair[1]]
        if different:
            logits = out.logits[different[0]][0]
            assert float(logits.max() - logits[sequence.outputs[different[0]]]) < 1e-4


def test_seeded_sampling_is_the_same_however_batched(load_tiny: Any, driver: Any, random_prompt: Any) -> None:
    """Temperature, filters and penalties: tokens and logprobs equal alone, in chunks, and among neighbours."""
    model = load_tiny("llama")
    sampling = SamplingParams(
        max_tokens=20, temperature=1.3, top_p=0.95, top_k=100, seed=77, repetition_penalty=1.1, logprobs=3
    )
    runs = []
    for chunk, neighbours, block_size in ((100, 0, 16), (1, 2, 4), (9, 20, 32)):
        running = driver(model, block_size=block_size, seed=neighbours)
        running.add_neighbours(neighbours, model.vocab_size)
        sequence = running.add(random_prompt(30), sampling, chunk)
        running.run(until=sequence)
        runs.append(sequence.sampled)
    assert runs[0] == runs[1] == runs[2]
    assert len({token.token_id for token in runs[0]}) > 10


def test_an_interrupted_sequence_continues_as_if_nothing_had_happened(
    load_tiny: Any, driver: Any, random_prompt: Any
) -> None:
    """Computed again elsewhere from prompt and delivered tokens, the rest is what it would have been."""
    model = load_tiny("llama")
    sampling = SamplingParams(max_tokens=16, temperature=1.0, seed=5, frequency_penalty=0.5)
    running = driver(model)
    sequence = running.add(random_prompt(20), sampling)
    running.run()
    for delivered in (1, 7, 15):
        again = driver(model, seed=delivered)
        resumed = again.add(random_prompt(20), sampling, chunk=6)
        resumed.tokens = sequence.tokens[: 20 + delivered]
        again.run()
        assert resumed.tokens == sequence.tokens


def test_a_sequence_with_broken_numbers_fails_alone(load_tiny: Any, driver: Any, random_prompt: Any) -> None:
    """Not-a-number in one sequence's KV: its result is an error, its neighbours' bits do not change."""
    model = load_tiny("llama")
    runs = []
    for breaks in (False, True):
        running = driver(model)
        victim = running.add(random_prompt(20, seed=1), 10)
        others = [running.add(random_prompt(length), 10) for length in (5, 40)]
        running.step()
        if breaks:
            running.pool.data[torch.tensor(victim.block_ids)] = float("nan")
        running.run()
        assert isinstance(victim.error, ServingError) == breaks
        runs.append([torch.stack(other.logits) for other in others])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_results_are_in_order_and_none_where_nothing_is_sampled(load_tiny: Any) -> None:
    """The contract of StepRunner; an empty step is nothing."""
    model = load_tiny("llama")
    runner = TorchRunner(model, KvPool(model.kv_layout(4), 10))
    request = SampleRequest(SamplingParams(max_tokens=4), [1, 2, 3], 3)
    steps = [
        SequenceStep(SequenceKey("a"), [1, 2], 0, [9], None),
        SequenceStep(SequenceKey("b"), [1, 2, 3], 0, (4,), request),
        SequenceStep(SequenceKey("c"), (7,), 0, [0], None),
    ]
    results = runner.execute(steps)
    assert [type(result) for result in results] == [type(None), SampledToken, type(None)]
    assert runner.execute(steps[:1]) == [None]
    assert runner.execute([]) == []


def test_another_thread_gives_the_same_bits(load_tiny: Any, driver: Any, random_prompt: Any) -> None:
    """The engine's thread is not the one that loaded the model; two engines may step at once."""
    drivers = [driver(load_tiny("llama"), seed=seed) for seed in range(3)]
    sequences = [running.add(random_prompt(50), 10) for running in drivers]
    drivers[0].run()
    threads = [threading.Thread(target=running.run) for running in drivers[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for sequence in sequences[1:]:
        assert torch.equal(torch.stack(sequence.logits), torch.stack(sequences[0].logits))


def test_a_pool_of_another_model_is_refused(load_tiny: Any) -> None:
    """Layout and fingerprint must be the model's own."""
    pool = KvPool(load_tiny("llama", seed=3).kv_layout(4), 10)
    with pytest.raises(ValueError, match="another model"):
        TorchRunner(load_tiny("llama"), pool)


@pytest.mark.parametrize("arch", ["qwen3", "gemma2", "gpt_oss", "qwen3_moe"])
def test_bfloat16_is_close_to_float32(
    arch: str, tiny_dir: Any, driver: Any, oracle_logits: Any, random_prompt: Any
) -> None:
    """Reference attention and plain products: logits within rounding of the oracle's, in mixed steps."""
    model = load_model(tiny_dir(arch), dtype="bfloat16")
    assert not model.deterministic
    running = driver(model)
    running.add_neighbours(3, model.vocab_size)
    sequence = running.add(random_prompt(40), 6, chunk=16)
    running.run()
    expected = oracle_logits(sequence.tokens[:-1], arch)[39:]
    found = torch.stack(sequence.logits).float()
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert errors.median() < (0.2 if "moe" in arch or "oss" in arch else 0.05)  # a near-tie may choose other experts


def test_warming_up_leaves_a_clean_pool_and_warns_of_nothing(load_tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """KV in shared memory, as a worker has it."""
    model = load_tiny("mixtral")
    layout = model.kv_layout(16)
    pool = KvPool(layout, 24, KvMemory(24, layout.block_bytes))
    with caplog.at_level(logging.WARNING):
        TorchRunner(model, pool).warm_up(max_num_batched_tokens=200, max_num_seqs=9)
    assert not caplog.records
    assert not pool.data.any()


def test_warming_up_warns_where_numbers_depend_on_the_company(tiny_dir: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A product that no row tile covers: the promise of deterministic mode is not kept, and it says so."""
    model = load_model(tiny_dir("llama"), kernels="torch")
    norm = model.kernels.module.model.norm
    whole = norm.forward
    norm.forward = lambda rows: whole(rows) + 1e-6 * rows.shape[1]
    runner = TorchRunner(model, KvPool(model.kv_layout(16), 24))
    with caplog.at_level(logging.WARNING):
        runner.warm_up(64, 2)
    assert "depend on what else is in the step" in caplog.text


def test_kv_memory_is_counted_in_blocks(load_tiny: Any) -> None:
    """As many as fit; too few for one sequence is an error with both numbers; the default is modest."""
    layout = load_tiny("llama").kv_layout(16)
    assert num_kv_blocks(layout, 100 * (layout.block_bytes + 8) + 5, 256) == 100
    with pytest.raises(ValueError, match=r"room for 15 blocks of 16 tokens; 256 tokens need 16 blocks"):
        num_kv_blocks(layout, 15 * (layout.block_bytes + 8), 256)
    assert 0 < default_kv_bytes() <= 1 << 30
