"""Host memory of a KV pool: an anonymous memory file that another process on this host may map, or private memory.

The file has no name, so nothing outlives a kill -9 (DESIGN section 5, "Shared memory"). It holds the blocks and,
after them, one 64-bit generation per block: raised whenever a block is given to an owner, so that a reader in another
process can tell that the block it copied was still the one it was told of. A pool that nobody maps lies in huge pages
where the system grants them, which files of this kind seldom get: attention reads it a quarter faster.
"""

from __future__ import annotations

import mmap
import os


def _data_bytes(num_blocks: int, block_bytes: int) -> int:
    page = mmap.PAGESIZE
    return (num_blocks * block_bytes + page - 1) // page * page


MADV_POPULATE_WRITE = 23  # Linux 5.14


class KvMemory:
    """The owner's view: readable and writable.

    Shapes: `data` is num_blocks * block_bytes bytes; `generations` is [num_blocks] of unsigned 64 bit.
    """

    def __init__(self, num_blocks: int, block_bytes: int, shared: bool = True) -> None:
        """Nothing is resident before it is touched; `shared` memory may be mapped by others, through `fd`."""
        assert num_blocks > 0 and block_bytes > 0
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        size = _data_bytes(num_blocks, block_bytes) + 8 * num_blocks
        self.fd: int | None = None
        if shared:
            self.fd = os.memfd_create("pdserve-kv", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        else:
            self._map = private_memory(size)
        whole = memoryview(self._map)
        self.data = whole[: num_blocks * block_bytes]
        self.generations = whole[_data_bytes(num_blocks, block_bytes) :].cast("Q")

    def make_resident(self) -> None:
        """Take the memory from the system now, where it can: a first touch costs more than the write itself."""
        _advise(self._map, MADV_POPULATE_WRITE)

    def block(self, block_id: int) -> memoryview:
        """The bytes of one block."""
        return self.data[block_id * self.block_bytes : (block_id + 1) * self.block_bytes]


def private_memory(size: int) -> mmap.mmap:
    """Zeroed memory of this process alone, in huge pages where the system grants them: a shared mapping gets none."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(memory, getattr(mmap, "MADV_HUGEPAGE", None))
    return memory


def _advise(memory: mmap.mmap, advice: int | None) -> None:
    """A wish: a system that does not know it loses speed alone."""
    try:
        if advice is not None:
            memory.madvise(advice)
    except OSError:
        pass


class MappedKvMemory:
    """Another process's pool, mapped read-only from its file descriptor (which is closed here)."""

    def __init__(self, fd: int, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        size = _data_bytes(num_blocks, block_bytes) + 8 * num_blocks
        try:
            actual = os.fstat(fd).st_size
            if actual != size:
                raise ValueError(f"pool has {actual:,} bytes, expected {size:,}")
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        whole = memoryview(self._map)
        self.data = whole[: num_blocks * block_bytes]
        self.generations = whole[_data_bytes(num_blocks, block_bytes) :].cast("Q")

    def block(self, block_id: int) -> memoryview:
        """The bytes of one block, read-only."""
        return self.data[block_id * self.block_bytes : (block_id + 1) * self.block_bytes]

    def close(self) -> None:
        """Unmap; every view taken from it must be gone or it stays mapped until they are."""
        self.generations.release()
        self.data.release()
        try:
            self._map.close()
        except BufferError:
            pass  # a copy still looks at it; the map goes with the last view
