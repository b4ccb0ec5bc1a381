"""What a worker is told: its engine and KV pool, and on its start line who it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields

from pdserve.settings import ConfigError, from_mapping, limits, setting


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One engine and its KV pool; None and "auto" are decided at start (deploy), never by the worker."""

    device: str = setting("cpu", "where the model runs", choices=("cpu", "cuda"))
    dtype: str = setting(
        "auto",
        "number type of weights and KV; auto: the checkpoint's on a GPU, on a CPU float32 for small models and "
        "bfloat16 for others",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_model_len: int | None = setting(
        None, "context in tokens, prompt and output together (default: the model's)", low=2, high=1 << 24
    )
    block_size: int = setting(16, "tokens per KV block, a power of two", low=1, high=1024)
    max_num_seqs: int | None = setting(
        None, "sequences in one step at most (default: 64 on a CPU, 256 on a GPU)", low=1, high=65536
    )
    max_num_batched_tokens: int | None = setting(
        None, "tokens in one step at most (default: 512 on a CPU, 8192 on a GPU)", low=1, high=1 << 20
    )
    gpu_memory_utilization: float = setting(
        0.9, "share of a GPU's memory that its workers use together", above=0.0, high=1.0
    )
    kv_bytes: int | None = setting(
        None,
        "KV memory of each worker, bytes or with K, M, G (default: on a CPU 1G or less, on a GPU what is left)",
        low=1,
        high=1 << 50,
    )
    enable_prefix_caching: bool = setting(True, "keep the KV of finished prompts for later ones")
    kv_transport: str = setting(
        "auto",
        "how KV moves between workers: shm or gloo on CPUs, the others on GPUs",
        choices=("auto", "shm", "gloo", "cuda_ipc", "nccl", "staged"),
    )
    threads: int | None = setting(
        None,
        "threads that compute in each worker on a CPU; they change no token of float32 (default: its share of cores)",
        low=1,
        high=1024,
    )
    pin_cores: str = setting(
        "auto",
        "keep each worker on cores of its own (a CPU, no Ray); auto: where each has at least 4",
        choices=("auto", "on", "off"),
    )
    kernels: str = setting(
        "auto", "what computes on a CPU; auto: native kernels where they are built", choices=("auto", "torch")
    )
    mock: str | None = setting(None, "profile of a mock engine: predicted step times, patterned KV, no model")
    worker_metrics_port: int | None = setting(
        None,
        "each worker serves its own /metrics: the first on this port, the others on the next ones; 0 picks free ones; "
        "the router lists them under /metrics/targets (default: only the router has /metrics)",
        low=0,
        high=65535,
    )

    def check(self) -> list[str]:
        problems = limits(self)
        if self.block_size in range(1, 1025) and self.block_size & (self.block_size - 1):
            problems.append(f"block_size is {self.block_size}; it must be a power of two from 1 to 1024")
        if self.device == "cpu" and self.dtype == "float16":
            problems.append("dtype is float16; with device cpu it must be auto, float32 or bfloat16")
        return problems


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What one worker process is given on its first line of standard input."""

    worker_id: str  # prefill-0, decode-0, ...
    role: str  # "prefill" or "decode"
    model: str  # local model directory; empty with a mock engine that needs none
    device: str  # "cpu", "cuda:0"
    cluster_secret: str = field(repr=False)  # what the worker's service asks of its callers
    listen: str  # HOST:PORT of the worker's service; port 0 picks a free one
    config: WorkerConfig  # every None and "auto" decided, but for kv_bytes on a GPU
    processors: tuple[int, ...] = ()  # that the process keeps to; empty: any
    shares_gpu: bool = False  # another worker has the same GPU

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WorkerStart:
        """Raises ConfigError for anything that to_json() does not write."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError([f"the worker's start line is not JSON: {error}"]) from None
        names = {one.name for one in fields(cls)}
        if not isinstance(data, dict) or set(data) != names or not isinstance(data["config"], dict):
            raise ConfigError([f"the worker's start line must be an object with {', '.join(sorted(names))}"])
        config, processors = from_mapping(WorkerConfig, data.pop("config")), data.pop("processors")
        if not isinstance(processors, list) or not all(type(one) is int and one >= 0 for one in processors):
            raise ConfigError([f"processors is {processors!r}; it must be a list of whole numbers from 0"])
        start = cls(**data, config=config, processors=tuple(processors))
        problems = limits(start) + config.check()
        if problems:
            raise ConfigError(problems)
        return start
