"""A worker that obeys the launcher's contract and computes nothing, and small model directories."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pdserve.config import WorkerConfig, WorkerStart

FAKE_WORKER = """
import json, os, signal, sys, threading

behaviour = sys.argv[1]
signal.signal(signal.SIGINT, signal.SIG_IGN)
start = json.loads(sys.stdin.readline())
name = start["worker_id"]
if behaviour == "refuses":
    print(json.dumps({"ready": False, "error": "weights are\\nbroken", "exit_code": 4}), flush=True)
    sys.exit(4)
if behaviour == "dies":
    sys.exit(7)
if behaviour == "silent-exit-3":
    sys.exit(3)
if behaviour == "garbage":
    print("hello", flush=True)
if behaviour == "stranger":
    name = "somebody-else"
if behaviour == "hangs":
    threading.Event().wait()
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def leave(*_):
        print("drained", file=sys.stderr, flush=True)
        os._exit(0)
    signal.signal(signal.SIGTERM, leave)
print(name + " \\u00e9 log line", file=sys.stderr, flush=True)
ready = {"ready": True, "address": "127.0.0.1:1", "worker_id": name, "boot_id": "00" * 16, "pid": os.getpid()}
print(json.dumps(ready), flush=True)
if behaviour == "dies-later":
    threading.Event().wait(0.2)
    os._exit(9)
if behaviour == "stubborn":
    threading.Event().wait()  # not even the end of its input moves it
sys.stdin.read()
"""


@pytest.fixture
def fake_worker(tmp_path: Path) -> Callable[..., Callable[[WorkerStart], list[str]]]:
    """Gives a launcher's `command`: a fake worker with a behaviour for each worker id, "good" unless named."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE_WORKER)

    def commands(**behaviours: str) -> Callable[[WorkerStart], list[str]]:
        named = {name.replace("_", "-"): behaviour for name, behaviour in behaviours.items()}
        return lambda start: [sys.executable, str(script), named.get(start.worker_id, "good")]

    return commands


@pytest.fixture
def worker_starts() -> list[WorkerStart]:
    """One prefill and one decode worker."""
    return [
        WorkerStart(f"{role}-0", role, "", "cpu", "secret", "127.0.0.1:0", WorkerConfig())
        for role in ("prefill", "decode")
    ]


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]], data: bytes | None = None) -> None:
    """A file of zeros with these (dtype, shape) tensors."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}
    header: dict[str, object] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + sizes[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + (bytes(at) if data is None else data))


VOCAB = {letter: index for index, letter in enumerate("abcdefgh !1\nA_")}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16, "max_position_embeddings": 64,
    "intermediate_size": 16,
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
    "post_processor": None, "decoder": None,
    "added_tokens": [{"id": 14, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True}],
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": VOCAB, "merges": []},
}  # fmt: skip


class ModelFiles:
    """A model directory that passes every check, to be broken by a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.config(**{})
        self.tokenizer()
        self.weights({"model.embed_tokens.weight": ("F32", [16, 8]), "lm_head.weight": ("F32", [16, 8])})

    def config(self, **changes: object) -> None:
        """config.json with some values changed; None removes one."""
        values = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
        (self.path / "config.json").write_text(json.dumps(values))

    def tokenizer(self, **changes: object) -> None:
        (self.path / "tokenizer.json").write_text(json.dumps({**TOKENIZER, **changes}))

    def weights(self, tensors: dict[str, tuple[str, list[int]]], name: str = "model.safetensors") -> None:
        write_safetensors(self.path / name, tensors)

    def raw_weights(self, header: bytes | str, data: bytes = b"", length: int | None = None) -> None:
        raw = header.encode() if isinstance(header, str) else header
        prefix = struct.pack("<Q", len(raw) if length is None else length)
        (self.path / "model.safetensors").write_bytes(prefix + raw + data)

    def sharded(self, weight_map: object) -> None:
        """An index instead of the one file."""
        (self.path / "model.safetensors").unlink()
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def model_files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path / "model")
