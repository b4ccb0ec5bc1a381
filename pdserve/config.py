"""What a cluster is told: frozen dataclasses, each field with its help, its limits and nothing read from elsewhere.

    ServeConfig            one `pdserve serve`
      RouterConfig         the front doors and the router
      WorkerConfig         every worker of the cluster
    WorkerStart            one worker process: WorkerConfig resolved, and who it is; travels as JSON

`check()` looks at everything and returns every problem; a problem is one line: what, value, what is allowed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields

from pdserve.settings import (
    ConfigError,
    address_problems,
    from_mapping,
    is_loopback,
    is_number,
    limits,
    setting,
    split_address,
)


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
class SloClass:
    """A named pair of thresholds that requests may ask for."""

    name: str
    ttft_s: float | None = setting(None, "seconds to the first token", above=0.0, high=86400.0)
    tpot_s: float | None = setting(None, "seconds per output token after the first", above=0.0, high=86400.0)


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A key that speaks for one tenant only."""

    tenant: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """The front doors, admission and the request's life."""

    grpc: str = setting("127.0.0.1:50051", "where gRPC listens, HOST:PORT; port 0 picks a free one")
    http: str = setting("127.0.0.1:8000", "where OpenAI HTTP listens, HOST:PORT; port 0 picks a free one")
    served_model_name: str | None = setting(None, "name that clients use (default: MODEL)")
    api_key: tuple[str, ...] = setting(
        (), "clients must show it, or another one given, as a bearer token (or PDSERVE_API_KEY)", secret=True
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "whose pages in a browser may call the HTTP door (CORS); *: everyone's (default: nobody's)"
    )
    tool_call_parser: str | None = setting(
        None,
        "format in which the model calls tools by its own choice (default: it is given none to choose from)",
        choices=("hermes", "llama3_json", "mistral"),
    )
    insecure_bind: bool = setting(False, "allow listening beyond this machine without encryption")
    max_concurrent_requests: int = setting(1024, "requests open at once; one more is refused", low=1, high=1 << 20)
    default_deadline_s: float = setting(600.0, "deadline of a request that brings none", above=0.0, high=86400.0)
    max_deadline_s: float = setting(3600.0, "longer deadlines are cut to this", above=0.0, high=86400.0)
    local_prefill_max_tokens: int = setting(
        0,
        "prompts up to this long are computed on their decode worker, without the trip (0: none)",
        low=0,
        high=1 << 24,
    )
    drain_timeout_s: float = setting(10.0, "seconds that running requests get at shutdown", low=0.0, high=10.0)
    slo_ttft_s: float | None = setting(None, "default SLO: seconds to the first token", above=0.0, high=86400.0)
    slo_tpot_s: float | None = setting(None, "default SLO: seconds per later token", above=0.0, high=86400.0)
    request_log: str | None = setting(
        None, "file that gets a line of JSON for every request when it ends; - is standard output"
    )
    otlp_endpoint: str | None = setting(
        None, "OpenTelemetry collector, http(s)://HOST:PORT of its gRPC, that gets every request's spans"
    )
    slo_classes: tuple[SloClass, ...] = ()
    tenants: tuple[str, ...] = ()
    tenant_keys: tuple[TenantKey, ...] = ()

    def check(self) -> list[str]:
        problems = limits(self)
        for name in ("grpc", "http"):
            bad = address_problems(name, getattr(self, name))
            if not bad and not self.insecure_bind and not is_loopback(split_address(getattr(self, name))[0]):
                bad = [f"{name} is {getattr(self, name)}; beyond this machine it must be allowed by --insecure-bind"]
            problems += bad
        if not problems and split_address(self.grpc)[1] != 0 and split_address(self.grpc) == split_address(self.http):
            problems.append(f"grpc and http are both {self.grpc}; they must differ")
        problems += self._key_problems()
        if self.served_model_name is not None and not self.served_model_name.strip():
            problems.append("served_model_name is empty; it must have at least one character")
        deadline, longest = self.default_deadline_s, self.max_deadline_s
        if is_number(deadline) and is_number(longest) and deadline > longest:
            problems.append(f"default_deadline_s is {deadline}; it must be at most max_deadline_s, {longest}")
        endpoint = self.otlp_endpoint
        if isinstance(endpoint, str) and not _is_collector(endpoint):
            problems.append(f"otlp_endpoint is {endpoint!r}; it must be http(s)://HOST:PORT, as http://127.0.0.1:4317")
        if self.request_log == "":
            problems.append("request_log is empty; it must be a file's name, or -")
        for one in self.slo_classes:
            problems += [f"slo_classes.{one.name}.{problem}" for problem in limits(one)]
        return problems

    def _key_problems(self) -> list[str]:
        """Keys are shown in a header; one key speaks for one tenant."""
        problems = []
        keys = [*(("api_key", key) for key in self.api_key), *(("tenant_keys", one.key) for one in self.tenant_keys)]
        for name, key in keys:
            if not (key and key.isascii() and key.isprintable() and " " not in key):
                problems.append(f"{name} is hidden; it must be printable ASCII without spaces, at least one character")
        if len({key for _, key in keys}) != len(keys):
            problems.append("api_key is hidden; no key may be given twice")
        if any(not origin.strip() for origin in self.allowed_origins):
            problems.append("allowed_origins has an empty one; it must be * or like https://host")
        return problems


def _is_collector(endpoint: str) -> bool:
    """http(s)://HOST:PORT; without a port gRPC would go to 443, whatever the scheme."""
    scheme, _, address = endpoint.removesuffix("/").partition("://")
    return scheme in ("http", "https") and "/" not in address and not address_problems("", address)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """One `pdserve serve`."""

    model: str = setting("", "local directory or hub id of a Hugging Face checkpoint")
    prefill: int = setting(1, "prefill workers; 0: the decode workers compute prompts too", low=0, high=1024)
    decode: int = setting(1, "decode workers", low=1, high=1024)
    ready_file: str | None = setting(None, "JSON written when everything answers and is warm")
    start_timeout_s: float = setting(600.0, "seconds that workers have to load and warm up", above=0.0, high=86400.0)
    ray: str | None = setting(
        None,
        "start the workers through Ray: with no ADDRESS on a cluster of our own on this machine; else HOST:PORT, or "
        "auto, of a running one that this machine belongs to",
    )
    ray_strategy: str = setting(
        "pack", "how Ray spreads workers over machines", choices=("pack", "spread", "strict_pack", "strict_spread")
    )
    ray_cpus: float | None = setting(
        None, "CPUs that each worker reserves in Ray (default: its threads; 1 beside a GPU)", above=0.0, high=1024.0
    )
    router: RouterConfig = RouterConfig()
    worker: WorkerConfig = WorkerConfig()

    def check(self) -> list[str]:
        problems = limits(self) + self.router.check() + self.worker.check()
        if not self.model and self.worker.mock is None:
            problems.append("MODEL is missing; it must be a local directory or a hub id")
        base = self.worker.worker_metrics_port
        if not problems and base is not None and base > (highest := 65536 - self.prefill - self.decode):
            problems.append(f"worker_metrics_port is {base}; with so many workers it must be at most {highest}")
        if isinstance(self.ray, str) and self.ray not in ("local", "auto") and address_problems("ray", self.ray):
            problems.append(f"ray is {self.ray!r}; it must be HOST:PORT or auto, or stand alone (after MODEL)")
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
