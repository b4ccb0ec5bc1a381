"""Native kernels of the CPU engine: built once by `make env`, never while somebody waits."""

from engine.native.library import NativeLibrary, load_library

__all__ = ["NativeLibrary", "load_library"]
