"""What the first simulation of a fresh installation is busy with, said before it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache

from placement.compiled import can_be_kept, is_on_disk


@cache
def tell_if_compiling(*functions: Callable[..., object]) -> None:
    """One line on standard error, once, where one of them has to be compiled before it can run."""
    if not all(is_on_disk(function) for function in functions):
        kept = all(can_be_kept(function) for function in functions)
        later = "; later runs find it compiled" if kept else " in every run: NUMBA_CACHE_DIR says where to keep it"
        print(f"compiling the simulator, which may take a minute{later}", file=sys.stderr, flush=True)
