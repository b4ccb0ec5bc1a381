"""A GPU pool as another process of this host can map it: the fields of CUDA's handle, plainly packed, never pickled.

NOT YET RUN ON A GPU. The fields are those of torch.UntypedStorage._share_cuda_, which torch.multiprocessing puts in its
own messages (torch/multiprocessing/reductions.py `reduce_tensor`):

    magic, blocks, bytes per block, bytes of the storage, its offset in the CUDA allocation, the pool's offset in the
    storage, torch's reference counter (a file in /dev/shm and a place in it), then each of: the GPU's UUID, the memory
    handle, the counter's name, torch's event handle, as 16 bits of length and the bytes

The device's number is not among them: two processes may count the GPUs differently, so it is found by UUID.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pdserve.errors import IncompatiblePeer

_HEAD = struct.Struct("<4sQQQQQQ?")
_LENGTH = struct.Struct("<H")
_MAGIC = b"PDCI"
MAX_CARD_BYTES = 2048


@dataclass(frozen=True, slots=True)
class PoolCard:
    """Everything a peer needs to map a pool."""

    num_blocks: int
    block_bytes: int
    storage_bytes: int
    storage_offset: int  # bytes from the CUDA allocation to the storage
    pool_offset: int  # bytes from the storage to the pool
    counter_offset: int
    event_required: bool
    gpu_uuid: bytes
    memory_handle: bytes
    counter_name: bytes
    event_handle: bytes

    def pack(self) -> bytes:
        head = _HEAD.pack(
            _MAGIC, self.num_blocks, self.block_bytes, self.storage_bytes, self.storage_offset, self.pool_offset,
            self.counter_offset, self.event_required,
        )  # fmt: skip
        texts = (self.gpu_uuid, self.memory_handle, self.counter_name, self.event_handle)
        return head + b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def unpack_card(packed: bytes) -> PoolCard:
    """IncompatiblePeer when these bytes are no card, or one of a pool that does not lie in its storage."""
    try:
        if len(packed) > MAX_CARD_BYTES:
            raise ValueError(f"{len(packed):,} bytes")
        magic, blocks, block_bytes, size, offset, pool_offset, counter_offset, required = _HEAD.unpack_from(packed)
        texts, at = [], _HEAD.size
        for _ in range(4):
            (length,) = _LENGTH.unpack_from(packed, at)
            at += _LENGTH.size
            texts.append(packed[at : at + length])
            at += length
        if magic != _MAGIC or at != len(packed):
            raise ValueError("another form")
        uuid, handle, counter, event = texts
        card = PoolCard(
            blocks, block_bytes, size, offset, pool_offset, counter_offset, required, uuid, handle, counter, event
        )
        if card.pool_offset + card.num_blocks * card.block_bytes > card.storage_bytes:
            raise ValueError("a pool beyond its storage")
    except (ValueError, struct.error) as error:
        raise IncompatiblePeer(f"the source sent no pool card: {error}") from error
    return card


class PoolSharing(Protocol):
    """Gives out a pool and maps another's. Blocking; thread-safe."""

    def export(self, pool: Tensor) -> bytes:
        """A packed card of this pool (dimension 0 is the blocks), which must outlive every mapping of it.

        IncompatiblePeer when its memory cannot be shared.
        """
        ...

    def open(self, packed: bytes) -> Tensor:
        """The peer's blocks as [N, block_bytes] uint8, mapped until dropped. IncompatiblePeer when it cannot be."""
        ...


class CudaPoolSharing:
    """By CUDA's inter-process handles. NOT YET RUN ON A GPU.

    The allocator must not use expandable segments: their memory has no such handle.
    """

    def export(self, pool: Tensor) -> bytes:
        try:
            with torch.cuda.device(pool.device):
                shared = pool.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise IncompatiblePeer(f"this worker's pool cannot be shared: {error}") from error
        device, handle, size, offset, counter, counter_offset, event, required = shared
        return PoolCard(
            num_blocks=len(pool), block_bytes=pool[0].nbytes, storage_bytes=size, storage_offset=offset,
            pool_offset=int(pool.storage_offset()) * pool.element_size(), counter_offset=counter_offset,
            event_required=bool(required), gpu_uuid=gpu_uuid(torch.device("cuda", device)).encode(),
            memory_handle=handle, counter_name=counter, event_handle=event,
        ).pack()  # fmt: skip

    def open(self, packed: bytes) -> Tensor:
        card = unpack_card(packed)
        device = device_of(card.gpu_uuid.decode())
        torch.cuda.init()  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.device(device):
                storage = torch.UntypedStorage._new_shared_cuda(
                    device.index, card.memory_handle, card.storage_bytes, card.storage_offset, card.counter_name,
                    card.counter_offset, card.event_handle, card.event_required,
                )  # fmt: skip
        except RuntimeError as error:
            raise IncompatiblePeer(f"the source's pool cannot be mapped: {error}") from error
        blocks = torch.empty(0, dtype=torch.uint8, device=device)
        blocks.set_(storage, card.pool_offset, (card.num_blocks, card.block_bytes))  # type: ignore[call-overload]
        return blocks


def gpu_uuid(device: torch.device) -> str:
    """What names a GPU in every process."""
    return str(torch.cuda.get_device_properties(device).uuid)


def device_of(uuid: str) -> torch.device:
    """This process's name for a GPU; IncompatiblePeer when it does not see it."""
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        if gpu_uuid(device) == uuid:
            return device
    raise IncompatiblePeer(f"the source's pool lies on GPU {uuid}, which this process does not see")


def can_reach(mine: torch.device, uuid: str) -> bool:
    """Can this GPU read the memory of that one? False where the process does not see it."""
    try:
        theirs = device_of(uuid)
    except IncompatiblePeer:
        return False
    return theirs == mine or torch.cuda.can_device_access_peer(mine, theirs)
