"""Moves KV blocks from a prefill worker to a decode worker: protocol and transports."""
