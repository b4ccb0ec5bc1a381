"""Receives KV, or computes a prompt itself, and generates."""
