"""Functions that numba compiles: in the language of numbers and arrays, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Machine code of a function; its results are those that Python gives, bit for bit (no fast-math).

    Cost:    seconds at the first call ever, some tens of milliseconds to load at the first call of a process.
    Cache:   beside the source where that can be written, else in the user's cache directory (numba's rule);
             NUMBA_CACHE_DIR moves it.
    """
    try:
        return cast(Callable[P, R], numba.njit(cache=True)(function))
    except RuntimeError:  # neither place can be written: every process compiles for itself
        return cast(Callable[P, R], numba.njit(function))
