"""Whole servers under load over the OpenAI HTTP API: ours, and vLLM on the CPU from an environment of its own."""
