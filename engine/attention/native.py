"""The CPU's own attention: one call of a native kernel per layer, over the pool as it lies."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from engine.attention.interface import AttentionCall
from engine.batch import StepBatch
from engine.kv_pool import KvPool
from engine.native.library import NativeLibrary
from engine.native.packed_linear import DTYPES


class AttentionStruct(ctypes.Structure):
    """Attention of attention.h, which says what the fields mean."""

    _fields_ = [
        ("dtype", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("key_size", c_int32),
        ("value_size", c_int32),
        ("block_size", c_int32),
        ("pool", c_void_p),
        ("block_stride", c_int64),
        ("key_offset", c_int64),
        ("value_offset", c_int64),
        ("num_sequences", c_int64),
        ("block_tables", c_void_p),
        ("table_stride", c_int64),
        ("starts", c_void_p),
        ("ends", c_void_p),
        ("first_rows", c_void_p),
        ("q", c_void_p),
        ("q_row_stride", c_int64),
        ("q_head_stride", c_int64),
        ("out", c_void_p),
        ("out_row_stride", c_int64),
        ("out_head_stride", c_int64),
        ("scale", c_float),
        ("window", c_int64),
        ("softcap", c_float),
        ("sinks", c_void_p),
    ]


class KvWriteStruct(ctypes.Structure):
    """KvWrite of kv_write.h."""

    _fields_ = [
        ("dtype", c_int32),
        ("kv_heads", c_int32),
        ("key_size", c_int32),
        ("value_size", c_int32),
        ("block_size", c_int32),
        ("pool", c_void_p),
        ("block_stride", c_int64),
        ("key_offset", c_int64),
        ("value_offset", c_int64),
        ("num_tokens", c_int64),
        ("blocks", c_void_p),
        ("slots", c_void_p),
        ("keys", c_void_p),
        ("key_row_stride", c_int64),
        ("key_head_stride", c_int64),
        ("values", c_void_p),
        ("value_row_stride", c_int64),
        ("value_head_stride", c_int64),
    ]


class NativeAttention:
    """float32 and bfloat16. A slot that nobody wrote is never read, so blocks need no clearing for it.

    In float32 a query's bits depend on its own sequence alone.
    """

    def __init__(self, pool: KvPool, library: NativeLibrary, portable: bool = False) -> None:
        """`portable` takes the kernels of a CPU without matrix instructions."""
        assert pool.dtype in DTYPES and pool.device.type == "cpu"
        self._pool, self._library = pool, library  # keeps memory and threads alive
        self._threads = library.threads
        self._attend = library.functions.pdserve_attend
        self._attend.restype, self._attend.argtypes = None, [c_void_p, c_void_p, c_int32]
        self._write = library.functions.pdserve_write_kv
        self._write.restype, self._write.argtypes = None, [c_void_p]
        self._portable = int(portable)
        self._num_tokens = 0
        self._held: tuple[Tensor, ...] = ()  # what the struct points into
        layout = pool.layout
        self._layers = [  # by the struct's order from kv_heads on
            (facts.kv_heads, facts.key_size, facts.value_size, layout.layer_offset(layer), pool.value_offset(layer))
            for layer, facts in enumerate(layout.layers)
        ]
        self._struct = AttentionStruct(
            dtype=DTYPES[pool.dtype],
            block_size=layout.block_size,
            pool=pool.data.data_ptr(),
            block_stride=layout.block_elements,
        )
        self._address = ctypes.addressof(self._struct)
        self._kv = KvWriteStruct(
            dtype=DTYPES[pool.dtype],
            block_size=layout.block_size,
            pool=pool.data.data_ptr(),
            block_stride=layout.block_elements,
        )
        self._kv_address = ctypes.addressof(self._kv)

    def begin(self, batch: StepBatch) -> None:
        tables, struct = batch.block_tables, self._struct
        spans = torch.tensor([batch.starts, batch.ends])  # [2, B]
        lengths = spans[1] - spans[0]
        first_rows = lengths.cumsum(0) - lengths
        self._held = (tables, spans, first_rows)
        self._num_tokens = batch.num_tokens
        struct.num_sequences = len(batch.starts)
        struct.block_tables, struct.table_stride = tables.data_ptr(), tables.stride(0)
        struct.starts, struct.ends = spans[0].data_ptr(), spans[1].data_ptr()
        struct.first_rows = first_rows.data_ptr()

    def attend(self, query: Tensor, call: AttentionCall) -> Tensor:
        struct = self._struct
        kv_heads, key_size, value_size, struct.key_offset, struct.value_offset = self._layers[call.layer]
        heads, rows, size = query.shape
        assert size == key_size and heads % kv_heads == 0
        head_stride, row_stride, inner = query.stride()
        if inner != 1:
            query = query.contiguous()
            head_stride, row_stride, _ = query.stride()
        out = torch.empty(rows, heads, value_size, dtype=query.dtype)
        if rows > self._num_tokens:
            out[self._num_tokens :] = 0
        struct.heads, struct.kv_heads, struct.key_size, struct.value_size = heads, kv_heads, key_size, value_size
        struct.q, struct.q_row_stride, struct.q_head_stride = query.data_ptr(), row_stride, head_stride
        struct.out, struct.out_row_stride, struct.out_head_stride = out.data_ptr(), heads * value_size, value_size
        struct.scale, struct.window, struct.softcap = call.scale, call.window or 0, call.softcap or 0.0
        sinks = None if call.sinks is None else call.sinks.float().contiguous()
        struct.sinks = None if sinks is None else sinks.data_ptr()
        self._attend(self._address, self._threads, self._portable)
        return out

    def write(self, layer: int, block_ids: Tensor, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """KvPool.write, natively: a few microseconds instead of two index_put.

        Shapes:  block_ids and slots [n] int64, contiguous; key [n, K, Dk]; value [n, K, Dv], any strides.
        """
        kv = self._kv
        kv.kv_heads, kv.key_size, kv.value_size, kv.key_offset, kv.value_offset = self._layers[layer]
        key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (key, value))
        kv.num_tokens, kv.blocks, kv.slots = len(key), block_ids.data_ptr(), slots.data_ptr()
        kv.keys, kv.key_row_stride, kv.key_head_stride = key.data_ptr(), key.stride(0), key.stride(1)
        kv.values, kv.value_row_stride, kv.value_head_stride = value.data_ptr(), value.stride(0), value.stride(1)
        self._write(self._kv_address)
