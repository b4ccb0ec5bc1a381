"""The server under load: how it is reached, what it serves, and the bytes of a request to it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bench.load.address import address_of, http_connection
from bench.load.grpc_stream import GrpcPool, grpc_request
from bench.load.http_request import completion_body, http_request
from bench.load.http_stream import HttpPool
from bench.load.tls_words import grpc_words, https_hint, https_refusal
from pdserve.client import Client
from pdserve.errors import ServingError
from pdserve.exit import ExitCode, StartError
from pdserve.slo import Slo
from pdserve.tls import Tls

FOREIGN_VOCAB = 1024  # every tokenizer in use has that many; over HTTP no server says
ASK_LIMIT_S = 10.0
LISTEN_LIMIT_S = 3.0
MOST_BYTES = 1 << 20  # of what a server says of its models
NEEDS_KEY = {401: "an API key is needed: --api-key or PDSERVE_API_KEY", 403: "this API key is not allowed to ask"}
ALLOWED = "HOST:PORT or grpc[s]://HOST:PORT for pdserve, http[s]://HOST[:PORT][/v1] for an OpenAI server"


class Door(Enum):
    """Which API."""

    GRPC = "grpc"
    COMPLETIONS = "completions"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Target:
    """One server. Picklable: generator processes get it."""

    door: Door
    host: str
    port: int
    tls: Tls | None = None  # None: it is not spoken
    base: str = "/v1"  # path of the API
    model: str = ""
    api_key: str | None = None
    vocab_size: int = FOREIGN_VOCAB
    max_model_len: int | None = None
    num_workers: int | None = None  # None: it does not say
    exact_lengths: bool = True  # ignore_eos and min_tokens are sent
    extra_body: str = "{}"  # JSON, more fields of every HTTP request

    @property
    def name(self) -> str:
        """As a user would write it."""
        if self.door is Door.GRPC:
            return f"grpc{'s' if self.tls else ''}://{self.host}:{self.port}"
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{self.base} ({self.door.value})"

    @property
    def wants_text(self) -> bool:
        """Chat takes no token ids."""
        return self.door is Door.CHAT

    def listens(self) -> bool:
        """Whether somebody takes a connection there now."""
        try:
            socket.create_connection((self.host, self.port), LISTEN_LIMIT_S).close()
        except OSError:
            return False
        return True

    def pool(self) -> GrpcPool | HttpPool:
        """Belongs to the running loop."""
        if self.door is Door.GRPC:
            return GrpcPool(f"{self.host}:{self.port}", self.api_key, self.tls)
        return HttpPool(self.host, self.port, None if self.tls is None else self.tls.context())

    def request(self, prompt: Sequence[int] | str, num_tokens: int, slo: Slo | None = None, tenant: str = "") -> bytes:
        """What `pool().ask` takes. The SLO and the tenant go to our own server alone."""
        if self.door is Door.GRPC:
            return grpc_request(self.model, prompt, num_tokens, slo, tenant, self.exact_lengths)
        given = prompt if isinstance(prompt, str) else list(prompt)
        body = completion_body(self.model, given, num_tokens)
        if self.door is Door.CHAT:
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        if self.exact_lengths:
            body |= {"ignore_eos": True, "min_tokens": num_tokens}
        body |= json.loads(self.extra_body)
        path = f"{self.base}/{'chat/' if self.door is Door.CHAT else ''}completions"
        return http_request(path, body, f"{self.host}:{self.port}", self.api_key)


def parse_target(
    text: str, flag: str = "--server", chat: bool = False, api_key: str | None = None, tls: Tls | None = None
) -> Target:
    """From what a user wrote; `tls`: how it is spoken where it is. Raises StartError (2)."""
    try:
        found = address_of(text, "grpc", ("grpc", "grpcs", "http", "https"), ALLOWED)
    except ValueError as error:
        raise StartError(f"{flag} is {text!r}; {error}", ExitCode.CONFIG) from None
    spoken = (tls or Tls()) if found.scheme in ("grpcs", "https") else None
    if found.scheme in ("grpc", "grpcs"):
        if chat:
            raise StartError(f"{flag} is {text!r}, and --chat needs an http:// server", ExitCode.CONFIG)
        return Target(Door.GRPC, found.host, found.port, spoken, api_key=api_key)
    base = found.path
    for end, is_chat in (("/chat/completions", True), ("/completions", False)):
        if base.endswith(end):
            base, chat = base.removesuffix(end), chat or is_chat
    door = Door.CHAT if chat else Door.COMPLETIONS
    return Target(door, found.host, found.port, spoken, base or "/v1", api_key=api_key)


def _no_http(target: Target, error: Exception) -> str:
    """Why there was no answer, and what to say instead."""
    where, tls = f"{target.host}:{target.port}", target.tls
    if tls is not None and (hint := https_hint(error, tls)) is not None:
        return hint
    if isinstance(error, http.client.BadStatusLine):
        hint = f"if it is pdserve's gRPC door, say grpc{'s' if tls else ''}://{where}"
        hint += "" if tls else f", if it wants TLS https://{where}"
        return f"what answers there does not speak HTTP/1: {hint}"
    return f"it does not answer: {error}"


def introduced(target: Target, flag: str = "--server") -> Target:
    """With what the server says of itself; raises StartError where it does not answer."""
    return _introduced_grpc(target, flag) if target.door is Door.GRPC else _introduced_http(target, flag)


def _introduced_grpc(target: Target, flag: str) -> Target:
    try:
        with Client(f"{target.host}:{target.port}", api_key=target.api_key, tls=target.tls) as client:
            info = client.server_info(ASK_LIMIT_S)
    except ServingError as error:
        hint = f"what answers there does not speak gRPC: if it is HTTP, say http://{target.host}:{target.port}"
        said = grpc_words(str(error), target.tls, "it does not answer")
        said = hint if "Failed parsing HTTP/2" in str(error) else said
        raise StartError(f"{flag} is {target.name}; {said}") from None
    alive = sum(worker.up for worker in info.workers)
    return replace(
        target,
        model=target.model or info.model,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        num_workers=alive,
    )


def _introduced_http(target: Target, flag: str) -> Target:
    """The first model that is listed. Asked also where one is given: what keeps TLS from being spoken is said here."""
    try:
        status, body = _listed(target)
    except (OSError, http.client.HTTPException) as error:
        if target.model and isinstance(error, TimeoutError):
            return target  # it need not list any
        error = error if target.tls is None else _alert(target, target.tls) or error
        raise StartError(f"{flag} is {target.name}; {_no_http(target, error)}") from None
    if target.tls is not None and (hint := https_refusal(status, body, target.tls)) is not None:
        raise StartError(f"{flag} is {target.name}; {hint}")
    if target.model:
        return target
    if status in NEEDS_KEY:
        raise StartError(f"{flag} is {target.name}; {NEEDS_KEY[status]} ({status})")
    try:
        first = json.loads(body)["data"][0]
        model, length = str(first["id"]), first.get("max_model_len")
    except (ValueError, KeyError, IndexError, TypeError):
        raise StartError(f"{flag} is {target.name}; {target.base}/models names no model: give --model") from None
    return replace(target, model=model, max_model_len=length if isinstance(length, int) else None)


def _alert(target: Target, tls: Tls) -> ssl.SSLError | None:
    """What a server says at once after the handshake: of a request that crosses it, nothing but the end is seen."""
    try:
        with (
            socket.create_connection((target.host, target.port), LISTEN_LIMIT_S) as plain,
            tls.context().wrap_socket(plain, server_hostname=target.host) as peer,
        ):
            peer.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass
    return None


def _listed(target: Target) -> tuple[int, bytes]:
    """Status and body of what a server says of its models."""
    connection = http_connection(target.host, target.port, target.tls, ASK_LIMIT_S)
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    try:
        connection.request("GET", f"{target.base}/models", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(MOST_BYTES)
    finally:
        connection.close()
