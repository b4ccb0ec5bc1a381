"""Where machine code is kept: a folder of its own for each state of the sources that it was compiled of.

Numba compares a function's own file with what it compiled, but not those of the functions it calls: after a change of
one file it would go on with others' old code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numba

from placement.compiled_sources import is_of, sources_of

_HERE = Path(__file__).parent
_GIVEN: str = numba.config.CACHE_DIR  # NUMBA_CACHE_DIR
_PREFIX = "numba-"
_LIST = "sources.json"
_MOST_KEPT = 8  # of some 15 MB each at most; the sources of each folder have their own


@contextmanager
def cache_of(folder: Path, decorators: str) -> Iterator[None]:
    """Functions of this folder's sources that the module `decorators` gives to numba are kept in their place."""
    numba.config.CACHE_DIR = _place(folder, decorators)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = _GIVEN


@cache
def _place(folder: Path, decorators: str) -> str:
    """Empty: nowhere can be written."""
    for place in (Path(_GIVEN),) if _GIVEN else (_HERE / "__pycache__", Path.home() / ".cache" / "pdserve"):
        try:
            place.mkdir(parents=True, exist_ok=True)
            own = _own(place, folder, decorators)
            os.utime(own)
        except OSError:
            continue
        if os.access(own, os.W_OK):
            if not _GIVEN:  # what else lies in a folder that was given is not ours to judge
                _forget_old(place)
            return str(own)
    return _GIVEN


def _own(place: Path, folder: Path, decorators: str) -> Path:
    """The one whose list of sources is as they are now, else that of their digest: to find it takes a while."""
    prefix = f"{_PREFIX}{folder.name}-"
    for known in place.glob(prefix + "*"):
        if is_of(known / _LIST, folder, _HERE.parent):
            return known
    sources = sources_of(folder, _HERE.parent, decorators)
    own = place / (prefix + sources.digest)
    own.mkdir(exist_ok=True)
    sources.write(own / _LIST)
    return own


def _forget_old(place: Path) -> None:
    """All of ours but those that processes used last."""
    used = {}
    for path in place.glob(_PREFIX + "*"):
        try:
            if (path / _LIST).is_file() or path.parent == _HERE / "__pycache__":
                used[path] = path.stat().st_mtime
        except OSError:
            pass  # another process was first
    for path in sorted(used, key=used.__getitem__, reverse=True)[_MOST_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
