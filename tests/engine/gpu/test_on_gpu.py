"""What only a GPU can show: real shapes and dtypes, captured graphs, streams, pinned memory, a pool beyond 32 bits.

    python -m pytest -m gpu tests/engine/gpu

The other files of this folder run on a GPU as well where there is one. NOT YET RUN ON HARDWARE.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_model import Shape, random_model
from engine.attention import AttentionCall, ReferenceAttention
from engine.batch import pack
from engine.kv_pool import KvPool
from engine.model import load_model
from pdserve.ids import SequenceKey
from pdserve.kv_layout import KvLayout, LayerLayout
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.step import SampleRequest, SequenceStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DEVICE = torch.device("cuda")
BLOCK_SIZE = 16
LIMITS = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}  # of attention's output, for values of about 1
LOGPROB_LIMIT = 0.05  # of bfloat16 log-probabilities between two ways to compute the same token
SHAPES: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {  # H, K, Dk, Dv; the layer's call
    "llama-8b": ((32, 8, 128, 128), {}),
    "qwen-0.5b": ((14, 2, 64, 64), {}),
    "gpt-oss": ((64, 8, 64, 64), {"window": 128, "sinks": True}),
    "gemma-2": ((8, 4, 256, 256), {"window": 4096, "softcap": 50.0}),
    "deepseek-v3": ((16, 16, 192, 128), {}),
    "phi-3": ((32, 32, 96, 96), {"window": 2047}),
}
SEQUENCES = [(0, 1), (4095, 1), (8191, 1), (8192, 1), (9000, 1), (0, 700), (3000, 513), (127, 2)]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", SHAPES)
def test_kernels_on_real_shapes(name: str, dtype: str) -> None:
    """Every dtype against the reference in float64; contexts beyond the first level of splits; decodes and chunks."""
    (heads, kv_heads, key_size, value_size), fields = SHAPES[name]
    layout = KvLayout("m", dtype, BLOCK_SIZE, (LayerLayout(kv_heads, key_size, value_size),))
    counts = [-(-(start + new) // BLOCK_SIZE) for start, new in SEQUENCES]
    pool, exact = (KvPool(layout, sum(counts), device=DEVICE) for _ in range(2))
    generator = torch.Generator(DEVICE).manual_seed(0)
    pool.data.normal_(generator=generator)
    order = random.Random(0).sample(range(sum(counts)), sum(counts))
    steps = []
    for index, ((start, new), count) in enumerate(zip(SEQUENCES, counts, strict=True)):
        blocks, order = order[:count], order[count:]
        steps.append(SequenceStep(SequenceKey(str(index)), [0] * new, start, blocks, None))
    batch = pack(steps, BLOCK_SIZE, 1, DEVICE)
    query = torch.randn(batch.num_tokens, heads, key_size, device=DEVICE, generator=generator).to(pool.dtype)
    sinks = torch.linspace(-1, 2, heads, device=DEVICE) if fields.get("sinks") else None
    call = AttentionCall(0, key_size**-0.5, fields.get("window"), fields.get("softcap"), sinks)
    backend = importlib.import_module("engine.gpu.attention").TritonAttention(pool, [heads], 16384)
    backend.begin(batch)
    found = backend.attend(query.transpose(0, 1), call)
    exact.dtype, exact.data = torch.float64, pool.data.double()
    exact._keys, exact._values = [exact._view(0, value=False)], [exact._view(0, value=True)]
    reference = ReferenceAttention(exact)
    reference.begin(batch)
    expected = reference.attend(query.transpose(0, 1).double(), call)
    torch.testing.assert_close(found.double(), expected, atol=LIMITS[dtype], rtol=LIMITS[dtype])


def test_blocks_beyond_32_bits() -> None:
    """A pool of more than 2**31 elements: what is written to its last blocks is read there."""
    layout = KvLayout("m", "bfloat16", BLOCK_SIZE, (LayerLayout(8, 128, 128),) * 4)
    num_blocks = (1 << 31) // layout.block_elements + 64
    pool = KvPool(layout, num_blocks, device=DEVICE)
    blocks = [num_blocks - 1, 0, num_blocks - 2]
    batch = pack([SequenceStep(SequenceKey("a"), [0] * 40, 0, blocks, None)], BLOCK_SIZE, 1, DEVICE)
    query, key, value = (torch.randn(40, heads, 128, device=DEVICE).bfloat16().transpose(0, 1) for heads in (32, 8, 8))
    backend = importlib.import_module("engine.gpu.attention").TritonAttention(pool, [32] * 4, 4096)
    backend.begin(batch)
    pool.data[blocks[0]].fill_(1.0)
    pool.clear(torch.tensor(blocks, device=DEVICE))
    assert not pool.data[blocks[0]].any()
    backend.write(3, key, value)
    call = AttentionCall(3, 128**-0.5)
    found = backend.attend(query, call)
    reference = ReferenceAttention(pool)
    reference.begin(batch)
    torch.testing.assert_close(found.float(), reference.attend(query, call).float(), atol=2e-2, rtol=2e-2)


class Worker:
    """A runner over a pool of its own."""

    def __init__(self, module: Any, layout: KvLayout, max_len: int, capture: bool) -> None:
        self.pool = KvPool(layout, 512, device=DEVICE)
        self.runner = importlib.import_module("engine.gpu.runner").GpuRunner(module, self.pool, max_len, 16, 2048)
        if capture:
            assert self.runner.capture()

    def run(
        self, prompts: list[list[int]], outputs: list[list[int]], first: int, last: int
    ) -> list[list[SampledToken]]:
        """Output tokens [first, last) of each sequence, all in every step; `outputs` are fed, not what is sampled.

        The prompt is computed where first is 0, in chunks of 100; block table i is [i * 32, (i + 1) * 32).
        """
        found: list[list[SampledToken]] = [[] for _ in prompts]
        params = SamplingParams(max_tokens=last, logprobs=0)
        tokens = [[*prompt, *given[:first]] for prompt, given in zip(prompts, outputs, strict=True)]
        steps = [
            SequenceStep(SequenceKey(str(i)), [], 0, list(range(i * 32, (i + 1) * 32)), None)
            for i in range(len(prompts))
        ]
        for step, known in zip(steps, tokens, strict=True):
            step.start = 0 if first == 0 else len(known) - 1
        while any(len(one) < last - first for one in found):
            active = [i for i, one in enumerate(found) if len(one) < last - first]
            for i in active:
                steps[i].token_ids = tokens[i][steps[i].start : steps[i].start + 100]
                complete = steps[i].end == len(tokens[i])
                steps[i].sample = SampleRequest(params, tokens[i], len(prompts[i])) if complete else None
            ends = [steps[i].end for i in active]
            for i, end, result in zip(active, ends, self.runner.execute([steps[i] for i in active]), strict=True):
                steps[i].start = end
                if result is not None:
                    assert isinstance(result, SampledToken)
                    found[i].append(result)
                    tokens[i].append(outputs[i][first + len(found[i]) - 1])
        return found


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Any, KvLayout]]:
    """Four layers of the 8B shape, random, bfloat16."""
    shape = Shape(layers=4, vocab=32000)
    yield random_model(shape, "bfloat16", DEVICE, 1024).module, shape.kv_layout("bfloat16", BLOCK_SIZE)
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    chance = random.Random(0)
    return [[chance.randrange(32000) for _ in range(length)] for length in (1, 17, 100, 333, 401)]


def greedy(worker: Worker, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Output tokens, each fed back."""
    outputs: list[list[int]] = [[] for _ in prompts]
    found = worker.run(prompts, [[0] * count for _ in prompts], 0, 1)
    for one, result in zip(outputs, found, strict=True):
        one.append(result[0].token_id)
    for index in range(1, count):
        given = [[*one, 0] for one in outputs]
        for one, result in zip(outputs, worker.run(prompts, given, index, index + 1), strict=True):
            one.append(result[0].token_id)
    return outputs


def assert_close(ours: list[list[SampledToken]], theirs: list[list[SampledToken]]) -> None:
    """Log-probabilities of what was chosen, and the same choice where it is not nearly a tie."""
    for mine, others in zip(ours, theirs, strict=True):
        for one, other in zip(mine, others, strict=True):
            assert one.logprobs is not None and other.logprobs is not None
            assert abs(one.logprobs.logprob - other.logprobs.logprob) < LOGPROB_LIMIT


def test_a_replayed_graph_equals_the_eager_pass(model: tuple[Any, KvLayout], prompts: list[list[int]]) -> None:
    """The same tokens fed to both, batches of one to five in graphs of one to eight."""
    module, layout = model
    eager, graphs = Worker(module, layout, 1024, False), Worker(module, layout, 1024, True)
    outputs = greedy(graphs, prompts, 8)
    for count in (1, 3, 5):
        some, given = prompts[:count], outputs[:count]
        assert_close(graphs.run(some, given, 0, 8), eager.run(some, given, 0, 8))


def test_a_split_worker_continues_what_another_computed(model: tuple[Any, KvLayout], prompts: list[list[int]]) -> None:
    """P computes the prompts; D gets the blocks' bytes and generates: as one engine does."""
    module, layout = model
    single, prefill, decode = (Worker(module, layout, 1024, True) for _ in range(3))
    outputs = greedy(single, prompts, 8)
    expected = single.run(prompts, outputs, 0, 8)
    first = prefill.run(prompts, outputs, 0, 1)
    torch.cuda.synchronize()
    decode.pool.data.copy_(prefill.pool.data)
    torch.cuda.synchronize()
    rest = decode.run(prompts, outputs, 1, 8)
    assert_close([[*one, *others] for one, others in zip(first, rest, strict=True)], expected)


def test_a_step_waits_for_nothing_but_its_tokens(model: tuple[Any, KvLayout], prompts: list[list[int]]) -> None:
    """Prefill, decode by graph, and all kinds of sampling, launched while torch refuses every synchronization."""
    module, layout = model
    worker = Worker(module, layout, 1024, True)
    params = SamplingParams(
        max_tokens=9, temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.2,
        presence_penalty=0.1, logit_bias=((5, 1.0),), min_tokens=3, stop_token_ids=(7,), logprobs=5, seed=1,
    )  # fmt: skip
    tokens = [list(prompt) for prompt in prompts]
    requests = [SampleRequest(params, known, len(known)) for known in tokens]
    steps = [
        SequenceStep(SequenceKey(f"wait-{i}"), known[:], 0, list(range(i * 32, (i + 1) * 32)), requests[i])
        for i, known in enumerate(tokens)
    ]
    worker.runner.collect(worker.runner.launch(steps))  # compiles, and allocates what is kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = worker.runner.launch(steps)
        for step, known in zip(steps, tokens, strict=True):
            known.append(-1)
            step.start, step.token_ids = len(known) - 1, [-1]
        second = worker.runner.launch(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for results in (worker.runner.collect(launched), worker.runner.collect(second)):
        assert all(isinstance(one, SampledToken) for one in results)


def test_host_memory_is_pinned() -> None:
    """Or copies would wait."""
    queue = importlib.import_module("engine.gpu.queue").queue_for(DEVICE)
    assert queue.host_buffer(4).is_pinned()


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "gpt_oss", "deepseek_v3"])
def test_families_load_and_are_captured(tiny_dir: Callable[..., Path], arch: str) -> None:
    """Loading with its dry run on the device; real graphs of a model with experts, sinks, windows, unlike sizes."""
    loaded = load_model(tiny_dir(arch), "float32", DEVICE, 256)
    pool = KvPool(loaded.kv_layout(BLOCK_SIZE), 64, device=DEVICE)
    runner = importlib.import_module("engine.gpu.runner").GpuRunner(loaded.kernels.module, pool, 256, 4, 512)
    assert runner.capture()
