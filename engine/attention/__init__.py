"""Attention over the paged KV pool: one interface, several backends."""

from engine.attention.interface import AttentionBackend, AttentionCall
from engine.attention.reference import ReferenceAttention
from engine.attention.tiled import TiledAttention

__all__ = ["AttentionBackend", "AttentionCall", "ReferenceAttention", "TiledAttention"]
