"""How the bytes of one KV block are laid out: what two workers must agree on before the first byte moves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint64": 8}


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One attention layer of a block: keys [kv_heads, slots, key_size], then values [kv_heads, slots, value_size]."""

    kv_heads: int
    key_size: int
    value_size: int

    def elements(self, block_size: int) -> int:
        """Elements of this layer in one block."""
        return self.kv_heads * block_size * (self.key_size + self.value_size)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """One block: the layers one after the other, contiguous; a block is one message.

    Where layers are alike this is [layers, 2, kv_heads, slots, head_dim] (DESIGN: block-major pool).
    """

    model: str  # fingerprint of the model's configuration and weights
    dtype: str  # name in DTYPE_BYTES
    block_size: int  # slots per block
    layers: tuple[LayerLayout, ...]

    @property
    def element_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def block_elements(self) -> int:
        return sum(layer.elements(self.block_size) for layer in self.layers)

    @property
    def block_bytes(self) -> int:
        return self.block_elements * self.element_bytes

    def layer_offset(self, index: int) -> int:
        """Elements before layer `index` in a block."""
        return sum(layer.elements(self.block_size) for layer in self.layers[:index])

    def fingerprint(self) -> bytes:
        """32 bytes; equal if and only if KV written by one worker can be read by the other."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()
