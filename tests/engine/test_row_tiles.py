"""A row's product has the same bits whatever rows are beside it."""

from __future__ import annotations

import pytest
import torch

from engine.row_tiles import ROW_TILE, RowTiles, _try_sizes


@pytest.mark.parametrize(("depth", "width"), [(65, 67), (88, 203), (96, 3), (513, 1000), (64, 8), (200, 1536)])
def test_rows_do_not_depend_on_their_number_or_place(depth: int, width: int) -> None:
    """Odd widths, 1 to 600 rows, with and without bias, either layout of the weight."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(width, depth, generator=generator), torch.randn(width, generator=generator)
    rows = torch.randn(600, depth, generator=generator)
    for matrix in (weight.t(), weight.t().contiguous()):
        for added in (None, bias):
            tiles = RowTiles()
            expected = torch.cat([tiles.multiply(rows[i : i + 1], matrix, added) for i in range(600)])
            torch.testing.assert_close(expected, rows @ matrix + (0 if added is None else added), atol=1e-3, rtol=1e-4)
            for count in (2, 7, 16, 31, 32, 33, 64, 96, 300, 512, 600):
                assert torch.equal(tiles.multiply(rows[:count], matrix, added), expected[:count]), count
            assert torch.equal(tiles.multiply(rows.flip(0), matrix, added), expected.flip(0))
            assert tiles.multiply(rows.view(2, 300, depth), matrix, added).shape == (2, 300, width)


def test_a_size_that_gives_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger products are tried before use: on a machine where 128 rows differ, 128 is left out."""
    from engine import row_tiles

    true_product = row_tiles._product

    def crooked(rows: torch.Tensor, *args: torch.Tensor | None) -> torch.Tensor:
        return true_product(rows, *args) + (1e-6 if len(rows) == 128 else 0)

    monkeypatch.setattr(row_tiles, "_product", crooked)
    assert 128 not in _try_sizes(torch.randn(40, 50), None)
    assert _try_sizes(torch.randn(40, 50), None)[-1] == ROW_TILE
