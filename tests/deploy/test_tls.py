"""Clients that speak TLS to servers whose certificates are made here, and words for those who do not get through."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from socket import create_server
from threading import Thread
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from bench.load.target import introduced, parse_target
from bench.load.tls_words import https_refusal
from deploy.cli import main
from pdserve import tls
from pdserve.client import AsyncClient, Client, GenerateOptions, Tls
from pdserve.errors import ServingError
from pdserve.exit import StartError
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc as rpc

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")


class Service(rpc.InferenceServiceServicer):  # type: ignore[misc]  # generated without types
    """One word."""

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        complete = pb.GenerateComplete(token_ids=[4], text="four", finish_reason=pb.FINISH_REASON_STOP)
        yield pb.GenerateResponse(request_id="r", chunk=pb.GenerateChunk(token_ids=[4], text="four"))
        yield pb.GenerateResponse(request_id="r", complete=complete)

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(model="m", max_model_len=8, vocab_size=9, version="1", workers=[])


@dataclass(frozen=True)
class Papers:
    """A CA's certificate, and of two that it signed certificate and key."""

    ca: str
    server: tuple[str, str]
    client: tuple[str, str]

    @property
    def trusting(self) -> Tls:
        return Tls(ca=self.ca)

    @property
    def known(self) -> Tls:
        return Tls(self.ca, *self.client)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    place = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True, timeout=60)

    (place / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test")
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-days", "2", "-out", f"{name}.pem")
    pairs = [(str(place / f"{name}.pem"), str(place / f"{name}.key")) for name in ("server", "client")]
    return Papers(str(place / "ca.pem"), *pairs)


@contextmanager
def serving(papers: Papers, strict: bool = False) -> Iterator[int]:
    """A gRPC server with TLS; its port. `strict`: it wants a client's certificate."""
    cert, key = (Path(path).read_bytes() for path in papers.server)
    ca = Path(papers.ca).read_bytes() if strict else None
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        rpc.add_InferenceServiceServicer_to_server(Service(), server)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)], ca, strict))
        server.start()
        try:
            yield port
        finally:
            server.stop(0).wait(10.0)


@contextmanager
def https(papers: Papers, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[int]:
    """An HTTPS server that wants a client's certificate, and says which model it has; its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=papers.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = version
    context.load_cert_chain(*papers.server)
    body = b'{"data": [{"id": "m"}]}'

    def answer() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as peer:
                    peer.recv(1 << 16)
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            except OSError:
                plain.close()

    with create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=answer)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(2)
            thread.join(10.0)


@pytest.mark.parametrize("strict", [False, True])
def test_both_clients_speak_tls(papers: Papers, strict: bool) -> None:
    tls = papers.known if strict else papers.trusting

    async def ask(address: str) -> str:
        async with AsyncClient(address, tls=tls) as client:
            return (await client.generate("one")).text

    with serving(papers, strict) as port:
        with Client(f"127.0.0.1:{port}", tls=tls) as client:
            assert client.generate("one").text == "four"
        assert asyncio.run(ask(f"localhost:{port}")) == "four"


def test_a_server_of_an_unknown_ca_and_a_client_without_certificate_are_refused(papers: Papers) -> None:
    options = GenerateOptions(timeout_s=10.0)
    with serving(papers, strict=True) as port:
        for tls in (Tls(), papers.trusting):
            with Client(f"127.0.0.1:{port}", tls=tls) as client, pytest.raises(ServingError, match="connect"):
                client.generate("one", options)


def test_generate_takes_a_server_with_tls(papers: Papers, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(papers, strict=True) as port:
        given = ["generate", "--server", f"grpcs://127.0.0.1:{port}", "--tls-ca", papers.ca, "one"]
        cert, key = papers.client
        assert main([*given, "--tls-cert", cert, "--tls-key", key]) == 0
        assert capsys.readouterr().out == "four\n"
        assert main(given) == 1
        assert "if it wants a client certificate, give --tls-cert" in capsys.readouterr().err
        other = [*given[:3], "--tls-ca", papers.client[0], "one"]
        assert main(other) == 1
        assert f"certificate): who signed it is not in --tls-ca {papers.client[0]}" in capsys.readouterr().err
        assert main(["generate", *given[3:], "--server", f"127.0.0.1:{port}"]) == 2
        assert f"where TLS is spoken, say grpcs://127.0.0.1:{port}" in capsys.readouterr().err


def test_what_is_not_trusted_is_one_line_with_nothing_of_grpcs_own(papers: Papers) -> None:
    with serving(papers) as port:
        address = f"grpcs://127.0.0.1:{port}"
        command = [sys.executable, "-m", "deploy.cli", "generate", "--server", address, "one"]
        env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    why = "unable to get local issuer certificate"
    said = f"its certificate is not trusted ({why}): --tls-ca names who signed it"
    assert (ran.returncode, ran.stderr) == (1, f"pdserve generate: error: --server is {address}; {said}\n")


def test_a_machine_whose_openssl_has_a_directory_alone_is_read_from_the_usual_file(
    papers: Papers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on Ubuntu: its directory gRPC cannot read, and gRPC's own list has no company's CA."""
    nothing = str(tmp_path / "none.pem")
    alone = SimpleNamespace(cafile=None, capath=str(tmp_path))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: alone)
    monkeypatch.setattr(tls, "BUNDLES", (nothing, papers.ca))
    with serving(papers) as port, Client(f"127.0.0.1:{port}", tls=Tls()) as client:
        assert client.generate("one").text == "four"
    monkeypatch.setattr(tls, "BUNDLES", (nothing,))
    assert tls.system_bundle() is None


@pytest.mark.parametrize("model", ["", "m"])
def test_bench_knows_servers_with_tls_and_says_what_they_want(papers: Papers, model: str) -> None:
    """Also where --model is given, and the server need not be asked for one."""

    def told(address: str, tls: Tls | None) -> str:
        with pytest.raises(StartError) as caught:
            introduced(replace(parse_target(address, tls=tls), model=model))
        return caught.value.message

    with serving(papers) as port:
        assert introduced(parse_target(f"grpcs://127.0.0.1:{port}", tls=papers.trusting)).model == "m"
        assert told(f"grpc://127.0.0.1:{port}", None).endswith("; if it wants TLS, say grpcs://")
    with https(papers) as port:
        address = f"https://127.0.0.1:{port}"
        assert introduced(replace(parse_target(address, tls=papers.known), model=model)).model == "m"
        flags = "give --tls-cert, and --tls-key where its key is in another file"
        for _ in range(5):  # a request that crosses the server's word sees the connection end, and nothing else
            assert told(address, papers.trusting).endswith(f"; it demands a client certificate: {flags}")
        assert told(address, None).endswith("--tls-ca names who signed it")


def test_bench_says_of_a_server_that_refuses_by_http_which_certificate_it_wants(papers: Papers) -> None:
    """As nginx does."""
    said = b"<html><head><title>400 No required SSL certificate was sent</title></head></html>"
    assert str(https_refusal(400, said, papers.trusting)).startswith("it demands a client certificate: give --tls-cert")
    assert f"--tls-cert {papers.client[0]}" in str(https_refusal(400, said, papers.known))
    assert https_refusal(400, b'{"error": "model?"}', papers.trusting) is None
    assert https_refusal(404, said, papers.trusting) is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bench_names_a_client_certificate_that_is_refused(
    papers: Papers, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    cert, key = str(tmp_path / "other.pem"), str(tmp_path / "other.key")
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=other"]
    subprocess.run([*new, "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=60)
    with https(papers, version) as port, pytest.raises(StartError) as caught:
        introduced(parse_target(f"https://127.0.0.1:{port}", tls=Tls(papers.ca, cert, key)))
    assert f"it does not take the client certificate in --tls-cert {cert} (" in caught.value.message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (lambda papers: ["--tls-ca", "/nope"], "--tls-ca is /nope; No such file or directory"),
        (lambda papers: ["--tls-ca", papers.client[1]], "it has no PEM in it"),
        (lambda papers: ["--tls-key", papers.client[1]], "--tls-key is given, --tls-cert is not"),
        (lambda papers: ["--tls-cert", papers.client[0]], "it is not a certificate in PEM, or not that of the key"),
        (
            lambda papers: ["--tls-cert", papers.client[0], "--tls-key", papers.server[1]],
            "it is not a certificate in PEM, or not that of the key",
        ),
    ],
)
@pytest.mark.parametrize("command", [["generate", "one"], ["bench", "--input-len", "1", "--output-len", "1"]])
def test_bad_files_are_named_before_anything_is_sent(
    papers: Papers,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    flags: Callable[[Papers], list[str]],
    said: str,
) -> None:
    assert main([*command, "--server", "grpcs://127.0.0.1:1", *flags(papers)]) == 2
    assert said in capsys.readouterr().err
    assert main([*command, "--server", "127.0.0.1:1", *flags(papers)]) == 2
    assert "means nothing to" in capsys.readouterr().err
