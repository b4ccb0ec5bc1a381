"""Sizes of memory, read and said."""

from __future__ import annotations

import pytest

from pdserve.byte_sizes import bytes_of, size_in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "0.977 KiB"), (20 << 20, "20 MiB"), (1023 << 20, "0.999 GiB"),
     (1.5 * 2**40, "1.5 TiB"), (2**60, "1.05e+06 TiB")],
)  # fmt: skip
def test_a_size_is_said_in_the_unit_that_shows_it(count: float, words: str) -> None:
    assert size_in_words(count) == words


def test_what_is_said_can_be_read() -> None:
    assert bytes_of(size_in_words(3 << 20).replace(" ", "")) == 3 << 20
