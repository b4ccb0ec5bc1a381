"""The bytes of a request to the OpenAI HTTP API."""

from __future__ import annotations

import json
from typing import Any


def http_request(path: str, body: dict[str, Any], host: str = "127.0.0.1", api_key: str | None = None) -> bytes:
    """The bytes of one POST."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{key}"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


def completion_body(model: str, prompt: list[int] | str, num_tokens: int) -> dict[str, Any]:
    """One greedy completion, streamed."""
    return {
        "model": model, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def completion_request(model: str, prompt: list[int], num_tokens: int, want_token_ids: bool = False) -> bytes:
    """The bytes of one greedy request of exactly num_tokens tokens, streamed."""
    body = completion_body(model, prompt, num_tokens) | {"ignore_eos": True, "return_token_ids": want_token_ids}
    return http_request("/v1/completions", body)
