"""What a running router says for planning: one question over HTTP, and why there was no answer."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from bench.load.address import address_of, http_connection
from bench.load.tls_words import https_hint
from pdserve.exit import ExitCode, StartError
from pdserve.planning_format import FORMAT, KEY, PATH
from pdserve.tls import Tls

LIMIT_S = 10.0
MAX_BYTES = 16 << 20
ALLOWED = "HOST:PORT or http[s]://HOST[:PORT], the router's HTTP"
_PAGE = "/dashboard"
_OPENAI = "/v1"  # what OpenAI's clients are given
_REFUSED = {
    401: "it asks for a key: give --api-key or PDSERVE_API_KEY",
    403: "the key speaks for one tenant, which does not see the others' requests: give --api-key the server's own",
    404: f"it has no {PATH}: another version of pdserve, or another server",
}


@dataclass(frozen=True, slots=True)
class Router:
    """Where a router answers, and how to ask there."""

    name: str  # as the user wrote it
    host: str
    port: int
    base: str  # before the path
    tls: Tls | None  # None: plain HTTP
    api_key: str | None

    def ask(self) -> dict[str, object]:
        """Its answer, within LIMIT_S. Errors: StartError, one line."""
        connection = http_connection(self.host, self.port, self.tls, LIMIT_S)
        said: Future[tuple[int, bytes]] = Future()
        late = threading.Event()
        # Of a thread: a socket's limit is of each read, of each address and of none of the name's look-up.
        threading.Thread(target=self._fetch, args=(connection, said, late), daemon=True).start()
        try:
            status, body = said.result(LIMIT_S)
        except TimeoutError:
            raise self._failed(f"it did not answer within {LIMIT_S:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(self._why(error)) from None
        finally:
            late.set()
            _cut(connection)
        if status != http.HTTPStatus.OK:
            why = _REFUSED.get(status, "it could not answer")
            if status == http.HTTPStatus.UNAUTHORIZED and self.api_key:
                why = "it does not know the key that was given"
            raise self._failed(f"{why} ({status})")
        return self._read(body)

    def _fetch(
        self, connection: http.client.HTTPConnection, said: Future[tuple[int, bytes]], late: threading.Event
    ) -> None:
        try:
            connection.connect()
            if not late.is_set():  # while there was no socket to cut
                said.set_result(self._answer(connection))
        except Exception as error:
            said.set_exception(error)
        finally:
            connection.close()

    def _answer(self, connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        connection.request("GET", f"{self.base}{PATH}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_BYTES + 1)

    def _read(self, body: bytes) -> dict[str, object]:
        try:
            found = json.loads(body) if len(body) <= MAX_BYTES else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or KEY not in found:
            raise self._failed("what answers there is not a router of pdserve")
        if found[KEY] != FORMAT:
            raise self._failed(f"it is another version: {KEY} is {str(found[KEY])[:40]}; this one reads {FORMAT}")
        return found

    def _why(self, error: Exception) -> str:
        if self.tls is not None and (hint := https_hint(error, self.tls)) is not None:
            return hint
        if isinstance(error, http.client.BadStatusLine):
            tls = "" if self.tls else ", or https:// where it speaks TLS"
            return f"what answers there does not speak HTTP (the gRPC door?): give {ALLOWED}{tls}"
        if isinstance(error, ConnectionRefusedError):
            return "nobody answers there: connection refused"
        return f"it does not answer: {error}"

    def _failed(self, why: str) -> StartError:
        return StartError(f"--live is {self.name}; {why}")


def router_of(text: str, api_key: str | None, tls: Tls | None) -> Router:
    """From what a user wrote; `tls`: how it is spoken where it is. `api_key`: checked. Errors: StartError (2)."""
    try:
        found = address_of(text, "http", ("http", "https"), ALLOWED)
        if found.extra:
            raise ValueError(f"it must be {ALLOWED}")
    except ValueError as error:
        raise StartError(f"--live is {text!r}; {error}", ExitCode.CONFIG) from None
    base = found.path.removesuffix(_PAGE).removesuffix(_OPENAI)
    return Router(text, found.host, found.port, base, (tls or Tls()) if found.scheme == "https" else None, api_key)


def _cut(connection: http.client.HTTPConnection) -> None:
    """Ends whoever still reads: one who sends a byte now and then would keep it for ever."""
    sock = connection.sock
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # it is closed already
            return
