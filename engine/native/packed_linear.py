"""Matrices packed for the native kernels, and their products with rows.

A packed matrix may hold several projections of the same input, one beside the other, or a gate and an up projection
whose activated product is what a multiplication gives. A row's numbers depend on that row and the matrix alone: not on
the rows beside it, nor on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.native.library import NativeLibrary
from pdserve.kv_memory import private_memory

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # DType of src/types.h
HUGE_PAGE_BYTES = 2 << 20
CHUNK_BYTES = 32 << 20
ALIGNMENT_BYTES = 4096


class Store(IntEnum):
    """What becomes of the sums. The two gates are for gated matrices, and they for nothing else."""

    STORE = 0
    ADD = 1  # to `out`, which is float32
    SILU_GATE = 2
    GELU_TANH_GATE = 3


class Kernel(IntEnum):
    """How bfloat16 is multiplied; all but BEST for tests. Each gives its own bits, always the same."""

    BEST = 0
    AMX = 1
    DOT = 2  # AVX512-BF16
    PLAIN = 3  # any CPU


class LinearStruct(ctypes.Structure):
    """PackedLinear of src/linear.h."""

    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("depth", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class HugePages:
    """Memory for matrices, in huge pages where the system has them: streaming it costs fewer address look-ups.

    Matrices share mappings, or each would leave half a huge page empty. A mapping goes with the last matrix in it.
    """

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Zeroed bytes, aligned to a page."""
        wanted = -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if wanted > len(self._left):
            mapped = private_memory(max(wanted, CHUNK_BYTES) + HUGE_PAGE_BYTES)
            memory = np.frombuffer(mapped, np.uint8)
            self._left = memory[-memory.ctypes.data % HUGE_PAGE_BYTES :]
        taken, self._left = self._left[:num_bytes], self._left[wanted:]
        return taken


class PackedLinear:
    """One packed matrix; made by a Packer. `struct` is what the native code reads, valid while this object lives."""

    def __init__(self, library: NativeLibrary, struct: LinearStruct, owned: tuple[object, ...]) -> None:
        self.library = library
        self.struct = struct
        self.dtype = torch.float32 if struct.dtype == 0 else torch.bfloat16
        self.depth: int = struct.depth
        self.out_features: int = struct.width // 2 if struct.gated else struct.width
        self._address = ctypes.addressof(struct)
        self._owned = owned
        self._multiply = library.functions.pdserve_multiply
        self._default = Store.SILU_GATE if struct.gated else Store.STORE

    def multiply(
        self, rows: Tensor, out: Tensor | None = None, store: Store | None = None, kernel: Kernel = Kernel.BEST
    ) -> Tensor:
        """The product of each row with the matrix, stored (or gated by SiLU) unless `store` says otherwise.

        Shapes:  rows [..., depth] of the matrix's dtype; returns [..., out_features] of that dtype, or `out`, which is
                 bfloat16 or float32 and may be wider than a row is long ([T, out_features] with any row stride).
        """
        x = rows if rows.dim() == 2 else rows.reshape(-1, self.depth)
        if x.stride(1) != 1:
            x = x.contiguous()
        y = rows.new_empty((*rows.shape[:-1], self.out_features)) if out is None else out
        assert x.dtype == self.dtype and x.shape[1] == self.depth, f"{x.dtype} {x.shape} by a depth of {self.depth}"
        if out is None:
            y_stride = self.out_features
        else:
            assert y.dim() == 2 and y.shape == (x.shape[0], self.out_features) and y.stride(1) == 1, y.shape
            y_stride = y.stride(0)
        failed = self._multiply(
            self._address,
            x.data_ptr(),
            x.stride(0),
            x.shape[0],
            y.data_ptr(),
            y_stride,
            DTYPES[y.dtype],
            self._default if store is None else store,
            self.library.threads,
            kernel,
        )
        assert not failed, f"{kernel.name} does not run here"
        return y


class Packer:
    """Packs the matrices of a model, while it is loaded."""

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self._memory = HugePages()
        functions = library.functions
        i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
        functions.pdserve_packed_bytes.restype, functions.pdserve_packed_bytes.argtypes = i64, [i32, i64, i64, i32]
        functions.pdserve_pack.restype = None
        functions.pdserve_pack.argtypes = [i32, i32, i64, i64, pointer, i64, i64, i64, i64, pointer, pointer]
        functions.pdserve_multiply.restype = i32
        functions.pdserve_multiply.argtypes = [pointer, pointer, i64, i64, pointer, i64, i32, i32, pointer, i32]

    def pack(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None] = ()) -> PackedLinear:
        """One matrix of several projections, the outputs of the first in front.

        Shapes:  weights [N, depth] each, any strides (a Conv1D gives weight.t()); biases [N] or None each.
        """
        return self._pack(weights, biases, gated=False)

    def pack_gated(self, gate: Tensor, up: Tensor, biases: Sequence[Tensor | None] = ()) -> PackedLinear:
        """A gated matrix: its product is activation(gate rows) * up rows. Both [N, depth]."""
        assert gate.shape == up.shape, f"gate is {gate.shape}, up {up.shape}"
        return self._pack((gate, up), biases, gated=True)

    def _pack(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], gated: bool) -> PackedLinear:
        depth, dtype = weights[0].shape[1], weights[0].dtype
        assert all(weight.shape[1] == depth and weight.dtype == dtype for weight in weights)
        width = sum(weight.shape[0] for weight in weights)
        functions, code = self._library.functions, DTYPES[dtype]
        packed = self._memory.take(functions.pdserve_packed_bytes(code, depth, width, gated))
        address, first = packed.ctypes.data, 0
        for weight in weights:
            strides, count = weight.stride(), weight.shape[0]
            functions.pdserve_pack(
                code, gated, depth, width, weight.data_ptr(), *strides, first, count, address, self._library.threads
            )
            first += count
        bias = _joined(weights, biases)
        struct = LinearStruct(code, gated, depth, width, address, None if bias is None else bias.data_ptr())
        return PackedLinear(self._library, struct, (packed, bias))


def _joined(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """The biases [width] as float32, zeros where a projection has none; None where none has."""
    if all(bias is None for bias in biases):
        return None
    assert len(biases) == len(weights), f"{len(biases)} biases for {len(weights)} weights"
    parts = [
        torch.zeros(weight.shape[0]) if bias is None else bias.detach().to(torch.float32)
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(parts).contiguous()
