"""Tile sizes of the kernels: chosen by a layer's shape alone, never by the batch. Guesses until a GPU measures them.

Hopper allows 227 KiB of shared memory per program; a pipelined loop keeps `stages` tiles of keys and values there.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.gpu.splits import FIRST_SPLIT
from pdserve.kv_layout import LayerLayout

STAGE_BYTES = 32 << 10  # keys and values of one tile, at most where that leaves 16 positions
PIPELINE_BYTES = 100 << 10  # so that two programs share a multiprocessor
LEAST_SIDE = 16  # of a matrix product on tensor cores
MAX_TILE = 64
PREFILL_WARPS = 8


@dataclass(frozen=True, slots=True)
class Tiling:
    """What the attention kernels of one layer are compiled with."""

    key_pad: int  # the key size, up to a power of two
    value_pad: int
    tile: int  # positions per step of the loop; divides FIRST_SPLIT
    decode_stages: int
    prefill_rows: int  # query rows of a prefill tile: tokens times the query heads that share a KV head
    prefill_stages: int


def tiling_for(layer: LayerLayout, element_bytes: int) -> Tiling:
    """The tiling of one layer."""
    key_pad, value_pad = power_of_two(layer.key_size), power_of_two(layer.value_size)
    position_bytes = (key_pad + value_pad) * element_bytes
    tile = MAX_TILE
    while tile > LEAST_SIDE and tile * position_bytes > STAGE_BYTES:
        tile //= 2
    assert FIRST_SPLIT % tile == 0
    stages = 3 if 3 * tile * position_bytes <= PIPELINE_BYTES else 2
    largest = max(key_pad, value_pad)
    rows = 16 if element_bytes == 4 or largest > 256 else 64 if largest > 128 else 128
    return Tiling(
        key_pad=key_pad,
        value_pad=value_pad,
        tile=tile,
        decode_stages=stages,
        prefill_rows=rows,
        prefill_stages=2,
    )


def power_of_two(size: int) -> int:
    """The next power of two, at least what tensor cores multiply."""
    return max(LEAST_SIDE, 1 << (size - 1).bit_length())
