"""A client: prompts in, tokens and text out, over gRPC.

    with Client("127.0.0.1:50051") as client:
        for event in client.stream("Once upon a time", GenerateOptions(max_tokens=64)):
            ...                                     # Chunk, Chunk, ..., Completion

    Client("llm.example.com:443", tls=Tls(ca="ca.pem"))   # behind a proxy that ends TLS

Errors are those of pdserve/errors.py, as the server meant them. Nothing is retried: the router does that.
"""

from pdserve.client.answers import Chunk, Completion, ServedWorker, ServerInfo
from pdserve.client.asynchronous import AsyncClient
from pdserve.client.blocking import Client
from pdserve.client.options import DEFAULT_TIMEOUT_S, GenerateOptions
from pdserve.tls import Tls

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "AsyncClient",
    "Chunk",
    "Client",
    "Completion",
    "GenerateOptions",
    "ServedWorker",
    "ServerInfo",
    "Tls",
]
