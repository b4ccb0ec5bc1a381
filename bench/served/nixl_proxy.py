"""The proxy before vLLM's prefill and decode servers: python -m bench.served.nixl_proxy PORT PREFILL_PORT DECODE_PORT

Each request goes to the prefill server for one token, which is thrown away; its answer says where the KV lies, and
goes to the decode server with the request. That server's answer is passed on as it comes. Nothing is parsed on the way
back: this costs the comparison as little as a proxy can.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ASK_REMOTE = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
    "remote_host": None, "remote_port": None,
}  # fmt: skip
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Proxy:
    """Connections to both servers are kept and used again."""

    def __init__(self, prefill_port: int, decode_port: int) -> None:
        self._prefill_port, self._decode_port = prefill_port, decode_port
        self._idle: dict[int, list[Streams]] = {prefill_port: [], decode_port: []}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, request after request."""
        try:
            while head := await read_head(reader):
                if head.startswith(b"GET"):
                    writer.write(OK)
                    continue
                await self._complete(json.loads(await reader.readexactly(length_of(head))), writer)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            writer.write(BAD_GATEWAY)
        finally:
            writer.close()

    async def _complete(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        first = {**body, "stream": False, "max_tokens": 1, "kv_transfer_params": ASK_REMOTE}
        first.pop("stream_options", None)
        prefill = await self._send(self._prefill_port, first)
        answer = json.loads(await prefill[0].readexactly(length_of(await read_head(prefill[0]))))
        self._idle[self._prefill_port].append(prefill)
        decode = await self._send(self._decode_port, {**body, "kv_transfer_params": answer["kv_transfer_params"]})
        await pass_on(decode[0], writer)
        self._idle[self._decode_port].append(decode)

    async def _send(self, port: int, body: dict[str, Any]) -> Streams:
        """The request written to an idle connection, or to a new one where the server closed what was idle."""
        idle = self._idle[port]
        streams = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        if streams[0].at_eof() or streams[1].is_closing():
            streams = await asyncio.open_connection("127.0.0.1", port)
        payload = json.dumps(body, separators=(",", ":")).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        streams[1].write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        return streams


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """Up to and with the empty line; nothing when the other side closed."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def length_of(head: bytes) -> int:
    """The Content-Length; ValueError where there is none."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError(f"no Content-Length in {head[:200]!r}")


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A whole answer in chunks, or of a known length (an error), as it comes."""
    head = await read_head(reader)
    writer.write(head)
    if b"transfer-encoding: chunked" not in head.lower():
        writer.write(await reader.readexactly(length_of(head)))
        return
    tail = b""
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        data = await reader.read(1 << 16)
        if not data:
            raise ValueError("the decode server closed in the middle of an answer")
        writer.write(data)
        tail = (tail + data)[-7:]


async def main(port: int, prefill_port: int, decode_port: int) -> None:
    proxy = Proxy(prefill_port, decode_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=1 << 22)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
