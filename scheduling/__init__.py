"""Torch-free decisions: batching, blocks, admission, routing, handoff states."""
