"""Matrix products whose rows do not depend on how many there are."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

ROW_TILE = 32  # rows of the smallest product; also: elementwise kernels treat the last few of other counts otherwise
SIZES = (512, 256, 128, 64)  # rows of larger ones, each used only where it was shown equal to ROW_TILE
MAX_TRIAL_NUMBERS = 1 << 24  # of a trial product's result: 64 MiB

log = logging.getLogger(__name__)


class RowTiles:
    """Products [M, K] @ [K, N] in fixed numbers of rows, for float32 and one thread.

    The first product of each shape (and place of the matrix in a cache line) tries the sizes on that matrix and keeps
    those that give ROW_TILE's bits.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def multiply(self, rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """rows [..., K] @ matrix [K, N] + bias [N] -> [..., N]."""
        flat = rows.reshape(-1, rows.shape[-1])
        count = flat.shape[0]
        sizes = self._sizes_for(matrix, bias)
        if count in sizes:
            out = _product(flat, matrix, bias)
        else:
            out = self._pieces(flat, matrix, bias, sizes)
        return out.view(*rows.shape[:-1], matrix.shape[1])

    def _pieces(self, flat: Tensor, matrix: Tensor, bias: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
        count = flat.shape[0]
        spare = -count % ROW_TILE
        if spare:
            flat = torch.cat([flat, flat.new_zeros(spare, flat.shape[1])])
        out = flat.new_empty(flat.shape[0], matrix.shape[1])
        at = 0
        for size in sizes:
            while at + size <= len(out):
                _product(flat[at : at + size], matrix, bias, out[at : at + size])
                at += size
        return out[:count]

    def _sizes_for(self, matrix: Tensor, bias: Tensor | None) -> tuple[int, ...]:
        """Largest first; always ends with ROW_TILE."""
        # A path may look at the address, too: weights mapped from a file begin anywhere.
        key = (*matrix.shape, *matrix.stride(), bias is not None, matrix.data_ptr() % 64)
        if key not in self._sizes:
            self._sizes[key] = _try_sizes(matrix, bias)
        return self._sizes[key]


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.mm(rows, matrix, out=out)
    return torch.addmm(bias, rows, matrix, out=out)


def _try_sizes(matrix: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    """The sizes whose every row has the bits that a ROW_TILE of the same rows in another order gives."""
    depth, width = matrix.shape
    sizes = [size for size in SIZES if size * width <= MAX_TRIAL_NUMBERS]
    most = max([*sizes, 2 * ROW_TILE])
    generator = torch.Generator().manual_seed(depth * 1_000_003 + width)
    rows = torch.randn(most, depth, generator=generator)
    order = torch.randperm(most, generator=generator)
    mixed = torch.cat([_product(part, matrix, bias) for part in torch.split(rows[order], ROW_TILE)])
    tiled = torch.empty_like(mixed)
    tiled[order] = mixed
    if not torch.equal(tiled, torch.cat([_product(part, matrix, bias) for part in torch.split(rows, ROW_TILE)])):
        log.warning("here a row of a [%d, %d] product depends on its place: not batch-invariant", depth, width)
    return (*(size for size in sizes if torch.equal(_product(rows[:size], matrix, bias), tiled[:size])), ROW_TILE)
