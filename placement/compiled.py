"""Functions that numba compiles: in the language of numbers and arrays, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numba

from placement.compiled_cache import cache_of

P = ParamSpec("P")
R = TypeVar("R")
_INNER = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # called by compiled code alone


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Machine code of a function; its results are those that Python gives, bit for bit (no fast-math).

    Cost:    seconds at the first call ever, some tens of milliseconds to load at the first call of a process.
    Cache:   in a folder beside this file where that can be written, else in ~/.cache/pdserve; NUMBA_CACHE_DIR moves it.
    """
    return _compile(function, {})


def compiled_lean(function: Callable[P, R]) -> Callable[P, R]:
    """The same without numba's runtime: the caller keeps every array alive, and none is made inside.

    With it every function counts references to each array it is given, with locked instructions: half of a run's time.
    """
    return _compile(function, {"_nrt": False})


def compiled_inner(function: Callable[P, R]) -> Callable[P, R]:
    """The same, made part of the compiled code that calls it.

    A call hands over five words and more for each array: to call what handles an event took a third of a run's time.
    """
    return _compile(function, {**_INNER, "forceinline": True})


def compiled_apart(function: Callable[P, R]) -> Callable[P, R]:
    """The same for what is rare: called, unless the compiler knows better."""
    return _compile(function, _INNER)


def is_on_disk(function: Callable[..., object]) -> bool:
    """Whether an earlier run left this compiled function's machine code; else its first call takes seconds.

    Trusts:  the sources are those of then, which a cache of our own making sees to.
    """
    place = function.stats.cache_path  # type: ignore[attr-defined]  # numba's dispatcher has it
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    return place is not None and any(Path(place).glob(f"{name}-*.nbi"))


def can_be_kept(function: Callable[..., object]) -> bool:
    """Whether its machine code is left for later runs; False where numba found nowhere to write."""
    return function.stats.cache_path is not None  # type: ignore[attr-defined]


def _compile(function: Callable[P, R], options: dict[str, bool]) -> Callable[P, R]:
    with cache_of(Path(function.__code__.co_filename).parent, __name__):
        try:
            return cast(Callable[P, R], numba.njit(cache=True, **options)(function))
        except RuntimeError:  # nowhere to write: every process compiles for itself
            return cast(Callable[P, R], numba.njit(**options)(function))
