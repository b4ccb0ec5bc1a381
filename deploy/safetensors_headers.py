"""The headers of safetensors files, read without torch and believed only after every length and offset was checked.

    [8 bytes: header length, little endian] [header: JSON, name -> dtype, shape, data_offsets] [data]

Source: the format's description, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 25_000_000
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class BadCheckpoint(Exception):
    """A model directory cannot be served; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: str  # key of DTYPE_BITS
    shape: tuple[int, ...]
    num_bytes: int


def read_json(path: Path, max_bytes: int) -> Any:
    """The JSON of a small file; raises BadCheckpoint for one that is missing, too large, too deep or malformed."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise BadCheckpoint(f"{path}: has {size:,} bytes, at most {max_bytes:,} are read")
        return parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise BadCheckpoint(f"{path}: is missing") from None
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from None


def parse_json(raw: bytes, where: str) -> Any:
    """JSON without duplicate keys; raises BadCheckpoint."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateKey as error:
        raise BadCheckpoint(f"{where}: the name {str(error)[:100]!r} appears twice") from None
    except UnicodeDecodeError:
        raise BadCheckpoint(f"{where}: is not UTF-8 text") from None
    except RecursionError:
        raise BadCheckpoint(f"{where}: is nested too deeply") from None
    except ValueError as error:
        raise BadCheckpoint(f"{where}: is not JSON: {error}") from None


class _DuplicateKey(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return made


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of one file by name; raises BadCheckpoint unless the tensors fill the data exactly."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise BadCheckpoint(f"{path}: has {size:,} bytes, too few for a safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(MAX_HEADER_BYTES, size - 8) or length < 2:
                raise BadCheckpoint(
                    f"{path}: header length is {length:,}; it must be from 2 to {min(MAX_HEADER_BYTES, size - 8):,}"
                )
            raw = file.read(length)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from None
    header = parse_json(raw, f"{path} (header)")
    if not isinstance(header, dict):
        raise BadCheckpoint(f"{path}: header is not an object")
    header.pop("__metadata__", None)
    entries, spans = {}, []
    for name, value in header.items():
        entries[name], begin = _entry(path, name, value)
        spans.append((begin, begin + entries[name].num_bytes, name))
    _check_spans(path, spans, size - 8 - length)
    return entries


def _entry(path: Path, name: str, value: Any) -> tuple[TensorEntry, int]:
    """One tensor and where its data begins."""
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= set(value):
        raise BadCheckpoint(f"{path}: tensor {name!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BadCheckpoint(f"{path}: tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
        raise BadCheckpoint(f"{path}: tensor {name!r} has a bad shape or bad data_offsets")
    num_bytes = (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8
    if offsets[1] - offsets[0] != num_bytes:
        raise BadCheckpoint(
            f"{path}: tensor {name!r} of {dtype} {shape} needs {num_bytes:,} bytes, has {offsets[1] - offsets[0]:,}"
        )
    return TensorEntry(dtype, tuple(shape), num_bytes), offsets[0]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 62 for one in value)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """The tensors lie one after the other, from the first byte of the data to the last."""
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            kind = "overlaps another" if begin < at else "leaves a hole before it"
            raise BadCheckpoint(f"{path}: tensor {name!r} {kind} (begins at {begin:,}, expected {at:,})")
        at = end
    if at != data_bytes:
        state = "truncated" if at > data_bytes else "longer than its header says"
        raise BadCheckpoint(f"{path}: is {state}: tensors end at {at:,}, the data at {data_bytes:,} bytes")
