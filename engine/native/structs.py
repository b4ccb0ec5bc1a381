"""The C structures of src/*.h, field by field. A field that is missing or moved here makes nonsense there."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p

from engine.native.packed_linear import LinearStruct


class NormStruct(ctypes.Structure):
    """step.h, Norm"""

    _fields_ = (("weight", c_void_p), ("eps", c_float), ("unused", c_int32))


class RopeStruct(ctypes.Structure):
    """step.h, Rope"""

    _fields_ = (("frequencies", c_void_p), ("rotary", c_int32), ("scale", c_float))


class LayerStruct(ctypes.Structure):
    """step.h, Layer"""

    _fields_ = (
        *((name, NormStruct) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp")),
        *((name, NormStruct) for name in ("query", "key")),
        *((name, LinearStruct) for name in ("qkv", "out", "gate_up", "down")),
        ("window", c_int64),
        ("key_offset", c_int64),
        ("value_offset", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("rope", c_int32),
        ("gate", c_int32),
    )


class DecoderStruct(ctypes.Structure):
    """step.h, Decoder"""

    _fields_ = (
        *((name, c_int32) for name in ("dtype", "num_layers", "heads", "kv_heads", "head_size", "hidden", "inner")),
        *((name, c_int32) for name in ("vocabulary", "block_size", "norm_all_heads")),
        ("layers", POINTER(LayerStruct)),
        ("ropes", POINTER(RopeStruct)),
        ("num_ropes", c_int32),
        ("last", NormStruct),
        ("head", LinearStruct),
        ("embedding", c_void_p),
        ("embedding_stride", c_int64),
        *((name, c_float) for name in ("embedding_scale", "residual_scale", "logit_scale", "logit_softcap")),
    )


class StepStruct(ctypes.Structure):
    """step.h, Step"""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "num_sequences", "num_samples", "table_stride")),
        *((name, c_void_p) for name in ("token_ids", "positions", "write_blocks", "write_slots")),
        *((name, c_void_p) for name in ("starts", "ends", "first_rows", "block_tables")),
        *((name, c_void_p) for name in ("sample_rows", "sample_sequences", "pool")),
        ("block_stride", c_int64),
        ("logits", c_void_p),
    )


PROFILE_PHASES = ("embed", "norms", "qkv", "rope, kv write", "attention", "out", "mlp", "head")
Profile = c_double * len(PROFILE_PHASES)


def check_structs(functions: ctypes.CDLL) -> None:
    """Raise AssertionError unless the mirrors above are as large as what they mirror."""
    mirrors = (LinearStruct, NormStruct, RopeStruct, LayerStruct, DecoderStruct, StepStruct)
    found = (c_int64 * len(mirrors))()
    functions.pdserve_struct_bytes(found)
    for mirror, size in zip(mirrors, found, strict=True):
        assert ctypes.sizeof(mirror) == size, f"{mirror.__name__} is not {size} bytes long"
