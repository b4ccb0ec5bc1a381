"""The paged KV pool: one tensor of blocks, and each layer's view of it."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from pdserve.kv_layout import KvLayout
from pdserve.kv_memory import KvMemory

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class KvPool:
    """Blocks of keys and values, block-major: a block is contiguous over all layers, one message to send.

    Shapes:  data [N, block_elements]; key(l) [N, K, S, Dk] and value(l) [N, K, S, Dv] are strided views of it.
    On the CPU `data` lies in `memory`, which a peer on this host may map; elsewhere it is a plain tensor of the device
    (written for CUDA, never run there). Slots that nobody wrote are zero once their block is cleared: what a former
    owner left, not-a-number perhaps, must never meet a weight of 0.
    """

    def __init__(
        self, layout: KvLayout, num_blocks: int, memory: KvMemory | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.device = torch.device(device)
        self.dtype = TORCH_DTYPES[layout.dtype]
        self._memory = memory  # keeps the mapping alive
        if memory is None:
            self.data = torch.zeros(num_blocks, layout.block_elements, dtype=self.dtype, device=self.device)
        else:
            assert self.device.type == "cpu", "host memory backs a pool on the CPU only"
            assert (memory.num_blocks, memory.block_bytes) == (num_blocks, layout.block_bytes)
            self.data = torch.frombuffer(memory.data, dtype=self.dtype).view(num_blocks, layout.block_elements)
        self._keys = [self._view(index, value=False) for index in range(len(layout.layers))]
        self._values = [self._view(index, value=True) for index in range(len(layout.layers))]

    def key(self, layer: int) -> Tensor:
        """[N, K, S, Dk], a view."""
        return self._keys[layer]

    def value(self, layer: int) -> Tensor:
        """[N, K, S, Dv], a view."""
        return self._values[layer]

    def value_offset(self, layer: int) -> int:
        """Elements of a block before the layer's values."""
        facts = self.layout.layers[layer]
        return self.layout.layer_offset(layer) + facts.kv_heads * self.layout.block_size * facts.key_size

    def write(self, layer: int, block_ids: Tensor, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Put one layer's keys and values of n tokens where they belong.

        Shapes:  block_ids and slots [n] int64, no (block, slot) twice; key [n, K, Dk]; value [n, K, Dv].
        """
        self._keys[layer][block_ids, :, slots] = key
        self._values[layer][block_ids, :, slots] = value

    def gather(self, layer: int, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` positions of a sequence: key [K, length, Dk] and value [K, length, Dv], copies.

        Shapes:  block_table [n] int64 on the pool's device, n * S >= length.
        """
        key = self._keys[layer][block_table].transpose(0, 1).flatten(1, 2)  # [n, K, S, D] -> [K, n * S, D]
        value = self._values[layer][block_table].transpose(0, 1).flatten(1, 2)
        return key[:, :length], value[:, :length]

    def clear(self, block_ids: Tensor) -> None:
        """Zero these blocks, all layers. Called when a sequence starts to write them and will not fill them at once."""
        self.data.index_fill_(0, block_ids, 0)

    def piece_elements(self, slots: int) -> int:
        """Elements of the largest piece that cuts `slots` slots of every layer's keys and values without remainder.

        `data` seen as rows of that many elements is what a gather may select from at the speed of a copy.
        """
        sizes = [size for facts in self.layout.layers for size in (facts.key_size, facts.value_size)]
        return slots * gcd(*sizes)

    def check(self) -> None:
        """Raise AssertionError unless the views lie in the blocks, one after the other, and fill them."""
        at = 0
        for index, facts in enumerate(self.layout.layers):
            for view, size in ((self._keys[index], facts.key_size), (self._values[index], facts.value_size)):
                assert view.shape == (self.num_blocks, facts.kv_heads, self.layout.block_size, size)
                assert view.storage_offset() == self.data.storage_offset() + at
                assert view.stride(0) == self.layout.block_elements
                at += facts.kv_heads * self.layout.block_size * size
        assert at == self.layout.block_elements

    def _view(self, layer: int, value: bool) -> Tensor:
        facts, slots = self.layout.layers[layer], self.layout.block_size
        offset = self.value_offset(layer) if value else self.layout.layer_offset(layer)
        size = facts.value_size if value else facts.key_size
        flat = self.data[:, offset : offset + facts.kv_heads * slots * size]
        return flat.view(self.num_blocks, facts.kv_heads, slots, size)
