"""Loading the native kernels, if they were built for this machine."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

from engine.native.build import is_whole, library_path

log = logging.getLogger(__name__)


class NativeLibrary:
    """The kernels and the threads that compute them. A call releases the GIL."""

    def __init__(self, path: Path, num_threads: int) -> None:
        """Raises OSError where the library does not load."""
        self.threads = ctypes.c_void_p(None)
        self.functions = ctypes.CDLL(str(path))
        self.num_threads = num_threads
        make = self.functions.pdserve_threads_new
        make.restype, make.argtypes = ctypes.c_void_p, [ctypes.c_int32]
        self._delete = self.functions.pdserve_threads_delete
        self._delete.restype, self._delete.argtypes = None, [ctypes.c_void_p]
        self.threads = ctypes.c_void_p(make(num_threads))

    def close(self) -> None:
        """End the threads. Safe to repeat."""
        if self.threads.value is not None:
            self._delete(self.threads)
            self.threads = ctypes.c_void_p(None)

    def __del__(self) -> None:
        self.close()


def load_library(num_threads: int = 1) -> NativeLibrary | None:
    """The kernels with that many threads, the caller's among them; None, with a line in the log, where absent."""
    path = library_path()
    if not is_whole(path):
        what = "damaged" if path.exists() else "not built"
        log.warning("the native kernels are %s (python -m engine.native): the engine will be slower", what)
        return None
    try:
        return NativeLibrary(path, num_threads)
    except OSError as error:
        log.warning("the native kernels cannot be loaded, the engine will be slower: %s", error)
        return None
