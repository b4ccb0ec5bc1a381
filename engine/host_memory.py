"""Keeping the peak of loading low: freed tensors go back to the system at once, not into the allocator's pockets."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

MADV_DONTNEED = 4
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt
WHILE_LOADING_BYTES = 1 << 20  # larger allocations are mapped on their own, and unmapped when freed
AFTERWARDS_BYTES = 32 << 20  # glibc's upper limit: a step's tensors are reused without page faults


@contextmanager
def thrifty_loading() -> Iterator[None]:
    """Inside, memory of freed tensors is returned. With glibc only; elsewhere nothing is changed.

    Loading a mixture joins each layer's experts from many small tensors: without this 1.75 times the weights stayed
    resident after loading 1.1 GB, with it 1.0.
    """
    libc = ctypes.CDLL(None)
    if not sys.platform.startswith("linux") or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, WHILE_LOADING_BYTES)
    try:
        yield
    finally:
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, AFTERWARDS_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * AFTERWARDS_BYTES)


def let_go(weight: Tensor) -> None:
    """Empty a parameter that nobody reads again, and give its pages back at once.

    A weight that is mapped from a file would stay resident, beside its packed copy, as long as any other weight of that
    file is used.
    """
    _drop_pages(weight.data)
    weight.data = weight.data.new_empty(0)


def _drop_pages(data: Tensor) -> None:
    """What lay in the whole pages of `data` is lost: of a file's mapping it can be read again, other memory is zero."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or not data.is_contiguous():
        return
    first = -(-data.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (data.data_ptr() + data.numel() * data.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(MADV_DONTNEED))
