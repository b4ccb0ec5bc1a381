"""The systems that are compared: what each one runs, on which cores.

Two cores are given to every system. Ours gets its defaults but for the number type and the KV memory, as does vLLM;
prefix caching is on in both, and no two prompts begin alike, so nothing is found in it.

  pdserve-split        router, one prefill and one decode worker
  pdserve-colocated    router, one worker that does both, threads as it chooses
  pdserve-replicas     router, two such workers of one thread
  vllm-colocated       one server, one OpenMP thread on each core
  vllm-split           two servers of one thread, pinned to a core each, NixlConnector over UCX, a proxy before them:
                       as shipped
  vllm-split-repaired  the same, with two defects that cost it most on two cores repaired: NIXL's progress thread pauses
                       between polls (as shipped it spins), and each server computes on its own core (as shipped the
                       connector moves both to the last core of the machine)
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.served.process_tree import pin
from bench.served.server import Part, Server

OURS = ("pdserve-split", "pdserve-colocated", "pdserve-replicas")
THEIRS = ("vllm-colocated", "vllm-split", "vllm-split-repaired")
MODEL_NAME = "bench"
NIXL_DELAY_VARIABLE = "NIXL_PROGRESS_DELAY_US"  # what bench.served.make_vllm_env teaches NIXL to read
REPAIRED_DELAY_US = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """What all systems of one comparison share."""

    model_dir: Path
    dtype: str
    max_model_len: int
    kv_gib: int  # KV memory of each worker
    cores: tuple[int, int]
    vllm_env: Path | None
    extra: Sequence[str] = ()  # more flags for pdserve serve


def make_server(name: str, setting: Setting, log_dir: Path) -> Server:
    """The named system, not started."""
    if name in OURS:
        return Server(name, [_pdserve(name, setting)], log_dir)
    if name == "vllm-colocated":
        return Server(name, [_vllm("", setting, setting.cores, free_port(), [], {})], log_dir)
    return Server(name, _vllm_split(setting, repaired=name.endswith("repaired")), log_dir)


def settle(server: Server, setting: Setting) -> None:
    """What is done to a system once it runs."""
    if server.name == "vllm-split-repaired":
        for part, core in zip(server.parts, setting.cores, strict=False):  # the proxy, third, is left free
            pin(server.root_pid(part), core)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _on_cores(cores: Sequence[int]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores))]


def _pdserve(name: str, setting: Setting) -> Part:
    workers = {
        "pdserve-split": ["--prefill", "1", "--decode", "1"],
        "pdserve-colocated": ["--prefill", "0", "--decode", "1"],
        "pdserve-replicas": ["--prefill", "0", "--decode", "2", "--threads", "1"],
    }[name]
    port = free_port()
    command = [
        *_on_cores(setting.cores), str(Path(sys.executable).with_name("pdserve")), "serve", str(setting.model_dir),
        *workers, "--dtype", setting.dtype, "--served-model-name", MODEL_NAME, "--kv-bytes", f"{setting.kv_gib}G",
        "--max-model-len", str(setting.max_model_len), "--http", f"127.0.0.1:{port}", "--grpc", "127.0.0.1:0",
        *setting.extra,
    ]  # fmt: skip
    return Part("", command, port, "/ready")


def _vllm(
    label: str, setting: Setting, cores: Sequence[int], port: int, flags: Sequence[str], variables: dict[str, str]
) -> Part:
    assert setting.vllm_env is not None
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(setting.kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **variables,
    }
    command = [
        *_on_cores(cores), "env", *(f"{name}={value}" for name, value in environment.items()),
        str(setting.vllm_env / "bin" / "vllm"), "serve", str(setting.model_dir), "--served-model-name", MODEL_NAME,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", setting.dtype,
        "--max-model-len", str(setting.max_model_len), "--no-enable-log-requests", "--disable-uvicorn-access-log",
        *flags,
    ]  # fmt: skip
    return Part(label, command, port)


def _vllm_split(setting: Setting, repaired: bool) -> list[Part]:
    connector = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    parts = []
    for label, core in zip(("prefill", "decode"), setting.cores, strict=True):
        variables = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}
        if repaired:
            variables[NIXL_DELAY_VARIABLE] = str(REPAIRED_DELAY_US)
        flags = ["--kv-transfer-config", json.dumps(connector)]
        parts.append(_vllm(label, setting, [core], free_port(), flags, variables))
    port = free_port()
    command = [sys.executable, "-m", "bench.served.nixl_proxy", *(str(p) for p in (port, parts[0].port, parts[1].port))]
    return [*parts, Part("proxy", command, port)]
