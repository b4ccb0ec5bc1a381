"""Real clusters, started as a user starts them, and clients for them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from transformers.utils import logging as transformers_logging

from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc

START_TIMEOUT_S = 120.0
VOCAB = 512
KV_BYTES = "64M"  # of each worker: the default is gigabytes, and the system takes a second or two to hand them out


@dataclass(frozen=True)
class Answer:
    """One request that was served."""

    chunks: list[list[int]]
    complete: Any  # pb.GenerateComplete

    @property
    def tokens(self) -> list[int]:
        return list(self.complete.token_ids)


class Server:
    """A running `pdserve serve`."""

    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, Any], log: Path) -> None:
        self.process, self.ready, self.log = process, ready, log
        self.channel = grpc.insecure_channel(ready["grpc"])
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    def workers(self, role: str) -> list[dict[str, Any]]:
        return [worker for worker in self.ready["workers"] if worker["role"] == role]

    def kill(self, worker_id: str, how: int = signal.SIGKILL) -> None:
        (worker,) = [one for one in self.ready["workers"] if one["id"] == worker_id]
        os.kill(worker["pid"], how)

    def generate(self, request: Any, timeout_s: float = 60.0) -> Answer:
        """One request to its end; a grpc.RpcError when it fails. The chunks add up to the whole."""
        chunks, complete = [], None
        for message in self.stub.Generate(request, timeout=timeout_s):
            assert complete is None, "something came after the end"
            if message.WhichOneof("response") == "chunk":
                chunks.append(list(message.chunk.token_ids))
            else:
                complete = message.complete
        assert complete is not None
        assert [token for chunk in chunks for token in chunk] == list(complete.token_ids)
        return Answer(chunks, complete)

    def generate_all(self, requests: Sequence[Any], concurrency: int, timeout_s: float = 120.0) -> list[Answer]:
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(lambda request: self.generate(request, timeout_s), requests))

    def metrics(self) -> dict[str, float]:
        """Every series by its full name, as Prometheus sees it."""
        with urllib.request.urlopen(f"http://{self.ready['http']}/metrics", timeout=10) as response:
            text = response.read().decode()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def held_blocks(self) -> dict[str, float]:
        """Blocks that are used, leased or quarantined, by worker; and leaked ones."""
        held = {}
        for name, value in self.metrics().items():
            states = re.search(r'^pdserve_kv_blocks\{.*state="(used|leased|quarantined)"', name)
            if (states or name.startswith("pdserve_kv_leaked_blocks")) and value:
                held[name] = value
        return held

    def wait_all_blocks_free(self, timeout_s: float = 10.0) -> None:
        """No worker holds a block for anyone (statuses come once a second)."""
        deadline = time.monotonic() + timeout_s
        time.sleep(1.1)  # a status that is younger than the last request
        while held := self.held_blocks():
            assert time.monotonic() < deadline, f"blocks are still held: {held}"
            time.sleep(0.2)


Serve = Callable[..., contextlib.AbstractContextManager[Server]]


def children_of(pid: int) -> list[int]:
    """Pids whose parent it is."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def running_server(directory: Path, model: Path | str, *flags: str, stop: bool = True) -> Iterator[Server]:
    """`pdserve serve MODEL FLAGS` until the block ends; then Ctrl-C, and nothing may be left behind."""
    ready_file, log = directory / "ready.json", directory / "serve.log"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "deploy.cli", "serve", *([str(model)] if model else []), "--grpc", "127.0.0.1:0",
               "--http", "127.0.0.1:0", "--ready-file", str(ready_file), "--kv-bytes", KV_BYTES, *flags]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.05)
        server = Server(process, json.loads(ready_file.read_text()), log)
        workers = children_of(process.pid)
        yield server
        server.channel.close()
        if stop:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, log.read_text()[-4000:]
            assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "a worker outlived the server"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`with serve(model, "--decode", "2") as server`."""

    def start(model: Path | str, *flags: str, stop: bool = True) -> contextlib.AbstractContextManager[Server]:
        return running_server(tmp_path, model, *flags, stop=stop)

    return start


@pytest.fixture(scope="session")
def serve_in() -> Serve:
    """`with serve_in(directory, model, "--decode", "2") as server`, for fixtures that outlive a test."""
    return running_server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 checkpoint with a context of 2,304 tokens."""
    transformers_logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("qwen3")
    make_model(directory, ModelSpec(arch="qwen3", vocab_size=VOCAB, max_position_embeddings=2304))
    return directory


@pytest.fixture(scope="session")
def mock_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps of a few milliseconds."""
    path = tmp_path_factory.mktemp("mock") / "profile.json"
    profile = {"base_s": 0.004, "per_prefill_token_s": 2e-5, "per_decode_sequence_s": 5e-5, "per_context_token_s": 0.0}
    path.write_text(json.dumps(profile))
    return path


def request_of(ids: Sequence[int], max_tokens: int, **fields: Any) -> Any:
    """A greedy request on token ids, which goes on to its last token."""
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), max_tokens=max_tokens, **{"ignore_eos": True, **fields})


def random_prompts(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="session")
def make_request() -> Callable[..., Any]:
    return request_of


@pytest.fixture(scope="session")
def make_prompts() -> Callable[[int, Sequence[int]], list[list[int]]]:
    return random_prompts
