"""The native attention kernels beside what the memory gives, what a product of matrices reaches, and torch's SDPA.

    python -m bench.attention [--dtype float32] [--heads 16 8 128] [--batches 1 8 32] [--contexts 512 2048]

A decode must read each sequence's KV once: its rate is a share of the read bandwidth of the same run. Every pass goes
over a pool of 400 MB or more, layer after layer, so that caches help little. A prefill must do the multiplications of
the positions that its queries see, no more: its rate stands beside that of torch's product of [512, 1024] and
[1024, 4096]. SDPA works on contiguous KV. The least of several passes, CPU time of one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.arguments import positive
from bench.limits import least_seconds, read_rate
from engine.attention import AttentionCall, ReferenceAttention
from engine.attention.interface import AttentionBackend
from engine.attention.native import NativeAttention
from engine.batch import StepBatch, pack
from engine.kv_pool import TORCH_DTYPES, KvPool
from engine.native import NativeLibrary, load_library
from pdserve.ids import SequenceKey
from pdserve.kv_layout import KvLayout, LayerLayout
from scheduling.step import SequenceStep

WORKING_SET_BYTES = 400_000_000
BLOCK_SIZE = 16
MAX_LAYERS = 28


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of one layer, and the dtype of its KV."""

    heads: int
    kv_heads: int
    size: int
    dtype: str

    @property
    def token_bytes(self) -> int:
        """Of one position's keys and values."""
        return 2 * self.kv_heads * self.size * TORCH_DTYPES[self.dtype].itemsize

    def pool(self, layers: int, num_blocks: int) -> KvPool:
        layout = KvLayout("m", self.dtype, BLOCK_SIZE, (LayerLayout(self.kv_heads, self.size, self.size),) * layers)
        pool = KvPool(layout, num_blocks)
        pool.data.copy_(
            torch.randn(1 << 20).repeat(pool.data.numel() // (1 << 20) + 1)[: pool.data.numel()].view_as(pool.data)
        )
        return pool


def product_rate(dtype: torch.dtype) -> float:
    rows, matrix = torch.ones(512, 1024, dtype=dtype), torch.ones(4096, 1024, dtype=dtype)
    return 2 * 512 * 1024 * 4096 / least_seconds(lambda: torch.nn.functional.linear(rows, matrix), 10)


def batches_of(spans: Sequence[tuple[int, int]], sets: int) -> tuple[list[StepBatch], int]:
    """`sets` batches of sequences that compute [start, end), on blocks of their own; and how many blocks."""
    counts = [-(-end // BLOCK_SIZE) for _, end in spans]
    order = torch.randperm(sets * sum(counts), generator=torch.Generator().manual_seed(0)).tolist()
    batches = []
    for _ in range(sets):
        steps = []
        for index, ((start, end), count) in enumerate(zip(spans, counts, strict=True)):
            blocks, order = order[:count], order[count:]
            steps.append(SequenceStep(SequenceKey(str(index)), [0] * (end - start), start, blocks, None))
        batches.append(pack(steps, BLOCK_SIZE, 1, torch.device("cpu")))
    return batches, sets * sum(counts)


def run(backend: AttentionBackend, batches: list[StepBatch], layers: int, query: Tensor) -> None:
    """Every layer of every batch, once."""
    for batch in batches:
        backend.begin(batch)
        for layer in range(layers):
            backend.attend(query, AttentionCall(layer, query.shape[2] ** -0.5))


def decode_line(shape: Shape, library: NativeLibrary, batch: int, context: int, bandwidth: float, tries: int) -> None:
    layer_bytes = batch * context * shape.token_bytes
    layers = max(1, min(MAX_LAYERS, WORKING_SET_BYTES // layer_bytes))
    batches, num_blocks = batches_of([(context - 1, context)] * batch, -(-WORKING_SET_BYTES // (layers * layer_bytes)))
    pool = shape.pool(layers, num_blocks)
    query = torch.randn(shape.heads, batch, shape.size).to(pool.dtype)
    total = layers * len(batches) * layer_bytes
    native, reference = (
        total / least_seconds(lambda b=backend: run(b, batches, layers, query), count)  # type: ignore[misc]
        for backend, count in ((NativeAttention(pool, library), tries), (ReferenceAttention(pool), 1))
    )
    kv = pool.data.view(-1)[: total // pool.dtype.itemsize].view(-1, 2, batch, shape.kv_heads, context, shape.size)
    rows = query.transpose(0, 1)[:, :, None]

    def sdpa() -> None:
        for key, value in kv:
            torch.nn.functional.scaled_dot_product_attention(rows, key, value, enable_gqa=True)

    peer = total / least_seconds(sdpa, 1)
    print(
        f"decode  batch {batch:3}  context {context:5}: {native / 1e9:6.1f} GB/s  {native / bandwidth:4.0%} of reading"
        f"  sdpa {peer / 1e9:5.1f} GB/s  reference {reference / 1e9:5.1f} GB/s",
        flush=True,
    )


def prefill_line(shape: Shape, library: NativeLibrary, start: int, end: int, rate: float, tries: int) -> None:
    (batch,), num_blocks = batches_of([(start, end)], 1)
    pool = shape.pool(1, num_blocks)
    query = torch.randn(shape.heads, end - start, shape.size).to(pool.dtype)
    pairs = (end * (end + 1) - start * (start + 1)) // 2
    flops = 4 * shape.heads * shape.size * pairs
    native, reference = (
        flops / least_seconds(lambda b=backend: run(b, [batch], 1, query), count)  # type: ignore[misc]
        for backend, count in ((NativeAttention(pool, library), tries), (ReferenceAttention(pool), 2))
    )
    key, value = (torch.randn(1, shape.kv_heads, end, shape.size).to(pool.dtype) for _ in range(2))
    mask = None if start == 0 else torch.arange(end) <= torch.arange(start, end)[:, None]
    peer = flops / least_seconds(
        lambda: torch.nn.functional.scaled_dot_product_attention(
            query[None], key, value, attn_mask=mask, is_causal=start == 0, enable_gqa=True
        ),
        2,
    )
    print(
        f"prefill {start:5} to {end:5}: {native / 1e9:7.0f} GFLOP/s  {native / rate:4.0%} of a product"
        f"  sdpa {peer / 1e9:5.0f} GFLOP/s  reference {reference / 1e9:5.0f} GFLOP/s",
        flush=True,
    )


def main() -> int:
    """Parse, measure the machine, then the kernels."""
    parser = argparse.ArgumentParser(description="Time native attention beside the machine's limits and SDPA.")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--heads", type=positive, nargs=3, default=[16, 8, 128], metavar=("H", "K", "D"))
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 32], help="sequences")
    parser.add_argument("--contexts", type=positive, nargs="+", default=[512, 2048], help="positions per sequence")
    parser.add_argument("--prompts", type=positive, nargs="+", default=[512, 2000], help="tokens of a prefill")
    parser.add_argument("--tries", type=positive, default=5)
    args = parser.parse_args()
    if args.heads[0] % args.heads[1]:
        parser.error(f"--heads: {args.heads[0]} query heads are not a multiple of {args.heads[1]} KV heads")
    torch.set_num_threads(1)
    library = load_library()
    if library is None:
        return 1
    heads, kv_heads, size = args.heads
    shape = Shape(heads, kv_heads, size, args.dtype)
    bandwidth, rate = read_rate().best, product_rate(TORCH_DTYPES[shape.dtype])
    print(f"{shape.heads} heads over {shape.kv_heads} of {shape.size}, {shape.dtype}, blocks of {BLOCK_SIZE}")
    print(f"machine: reads {bandwidth / 1e9:.1f} GB/s, multiplies {rate / 1e9:.0f} GFLOP/s", flush=True)
    for context in args.contexts:
        for batch in args.batches:
            decode_line(shape, library, batch, context, bandwidth, args.tries)
    for length in args.prompts:
        prefill_line(shape, library, 0, length, rate, args.tries)
    for length in args.prompts:
        prefill_line(shape, library, 1500, 1500 + length, rate, args.tries)
    library.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
