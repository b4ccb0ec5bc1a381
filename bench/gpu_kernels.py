"""Compile the Triton kernels for a GPU that is not here: registers, spills and shared memory per kernel and shape.

    python -m bench.gpu_kernels [--capability 90] [NAME...]

Needs Triton (pip install '.[gpu]') and no GPU: its wheel carries the assembler. What does not compile, spills, or asks
for more shared memory than the card has is found before there is a card. Speed is not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.gpu.splits import FIRST_SPLIT, SPLITS_PER_LEVEL
from engine.gpu.tiling import PREFILL_WARPS, tiling_for
from pdserve.kv_layout import LayerLayout

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}  # of one program, by capability
BLOCK_SIZE = 16
WRITE_ROWS, REDUCE_CHUNK = 8, 16  # engine/gpu/attention.py


@dataclass(frozen=True, slots=True)
class Case:
    """One layer of a model."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    dtype: str  # bf16, fp16 or fp32
    window: int = 0
    softcap: bool = False
    sinks: bool = False


CASES = {
    "llama-8b": Case(32, 8, 128, 128, "bf16"),
    "qwen3-0.6b": Case(16, 8, 128, 128, "bf16"),
    "qwen2-0.5b": Case(14, 2, 64, 64, "fp16"),
    "gpt-oss": Case(64, 8, 64, 64, "bf16", window=128, sinks=True),
    "gemma-2": Case(8, 4, 256, 256, "bf16", window=4096, softcap=True),
    "deepseek-v3": Case(128, 128, 192, 128, "bf16"),
    "float32": Case(32, 8, 128, 128, "fp32"),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the assembler says of one kernel."""

    registers: int  # per thread
    spill_bytes: int  # stored to memory for want of registers
    shared_bytes: int
    tensor_cores: str  # the instruction that multiplies


def compile_case(case: Case, capability: int) -> dict[str, Compiled]:
    """All four kernels of one layer, as engine/gpu/attention.py launches them."""
    share = case.heads // case.kv_heads
    tiling = tiling_for(LayerLayout(case.kv_heads, case.key_size, case.value_size), 4 if case.dtype == "fp32" else 2)
    sizes = {
        "SLOTS": BLOCK_SIZE, "KEY_SIZE": case.key_size, "VALUE_SIZE": case.value_size,
        "KEY_PAD": tiling.key_pad, "VALUE_PAD": tiling.value_pad,
    }  # fmt: skip
    places = {"FIRST": FIRST_SPLIT, "PER_LEVEL": SPLITS_PER_LEVEL, "WINDOW": case.window}
    common = sizes | {
        "SHARE": share, "KV_HEADS": case.kv_heads, "TILE": tiling.tile, "WINDOW": case.window, "SOFTCAP": case.softcap,
        "PRECISION": "ieee" if case.dtype == "fp32" else "tf32",
    }  # fmt: skip
    reduction = {"HEADS": case.heads, "VALUE_SIZE": case.value_size, "VALUE_PAD": tiling.value_pad}
    reduction |= {"CHUNK": REDUCE_CHUNK, "SINKS": case.sinks}
    decode = common | places | {"SHARE_PAD": max(16, 1 << (share - 1).bit_length())}
    prefill = common | {"ROWS": tiling.prefill_rows, "SINKS": case.sinks}
    asked: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
        "decode": ("decode", decode, {"num_warps": 4, "num_stages": tiling.decode_stages}),
        "reduce": ("decode", reduction | places, {"num_warps": 2}),
        "prefill": ("prefill", prefill, {"num_warps": PREFILL_WARPS, "num_stages": tiling.prefill_stages}),
        "write": ("write", sizes | {"ROWS": WRITE_ROWS}, {}),
    }
    found = {}
    for name, (file, constants, options) in asked.items():
        kernel = getattr(importlib.import_module(f"engine.gpu.kernels.{file}"), f"{name}_kernel")
        found[name] = _compile(kernel, constants, options, case.dtype, capability)
    return found


def _compile(kernel: Any, constants: dict[str, Any], options: dict[str, int], dtype: str, capability: int) -> Compiled:
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else _type(name, dtype) for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*") or name.startswith("stride_")
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(compiler.ASTSource(kernel, signature, values, aligned), target=target, options=options)
    said = _assemble(compiled.asm["ptx"], Path(str(triton.__file__)).parent, capability)
    spills = re.search(r"(\d+) bytes spill stores", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None, said
    kinds = [kind for kind in ("wgmma", "mma.sync") if kind in compiled.asm["ptx"]]
    shared: int = compiled.metadata.shared
    return Compiled(int(registers[1]), int(spills[1]) if spills else 0, shared, kinds[0] if kinds else "-")


def _assemble(ptx: str, triton: Path, capability: int) -> str:
    """What Triton's own assembler says of the code."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
        command = [str(triton / "backends/nvidia/bin/ptxas"), "-v", f"-arch={target}", file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _type(name: str, dtype: str) -> str:
    if name in {"query", "out", "sinks", "key", "value", "key_pool", "value_pool"}:
        return f"*{dtype}"
    if name.startswith("partial_"):
        return "*fp32"
    if name in {"inner", "outer"}:
        return "fp32"
    if name.startswith("stride_") or name == "num_rows":
        return "i32"
    return "*i32" if name == "tables" else "*i64"


def main() -> int:
    """A line per kernel; 1 where one spills or does not fit."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels for a GPU that is not here.")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--capability", type=int, default=90, choices=SHARED_BYTES, help="of the GPU; 90 is Hopper")
    args = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        print("bench.gpu_kernels: Triton is not installed: pip install '.[gpu]'", file=sys.stderr)
        return 0
    bad = 0
    for name in args.names or CASES:
        for kernel, one in compile_case(CASES[name], args.capability).items():
            fits = one.shared_bytes <= SHARED_BYTES[args.capability] and not one.spill_bytes
            bad += not fits
            print(
                f"{name:12} {kernel:8} {one.registers:4} registers  {one.spill_bytes:6} bytes spilled"
                f"  {one.shared_bytes / 1024:6.1f} KiB shared  {one.tensor_cores:8} {'' if fits else 'BAD'}",
                flush=True,
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
