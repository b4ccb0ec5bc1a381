"""What the workers ask of Ray, and what of it is missing: decided without Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from deploy.words import counted
from pdserve.config import WorkerStart
from pdserve.settings import ConfigError

LOCAL = "local"  # the address that means: start a cluster for us, and end it with us


@dataclass(frozen=True, slots=True)
class KeeperStart:
    """What the keeper is given on its first line of standard input."""

    address: str  # "local", "auto" or HOST:PORT of a running cluster
    temp_dir: str  # where a local cluster keeps its sockets and logs; "" with one that is not ours
    strategy: str  # "pack", "spread", "strict_pack" or "strict_spread"
    cpus_per_worker: float | None  # None: its threads, 1 beside a GPU
    insecure_bind: bool  # workers may listen beyond their machine
    workers: tuple[WorkerStart, ...]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"workers": [worker.to_json() for worker in self.workers]})

    @classmethod
    def from_json(cls, text: str) -> KeeperStart:
        """Raises ConfigError for anything that to_json() does not write."""
        try:
            data = json.loads(text)
            if set(data) != {one.name for one in fields(cls)}:
                raise ValueError("other fields")
            return cls(**data | {"workers": tuple(WorkerStart.from_json(one) for one in data["workers"])})
        except (ValueError, TypeError) as error:
            raise ConfigError([f"the start line of Ray's keeper is not one: {error}"]) from None


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one worker reserves."""

    cpus: float
    gpus: float

    def resources(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def bundle_of(start: KeeperStart, cluster_gpus: float) -> Bundle:
    """The same for every worker; where workers outnumber GPUs, each asks for an equal share of one."""
    one = start.workers[0]
    on_gpu = one.device != "cpu"
    cpus = start.cpus_per_worker or (1 if on_gpu else one.config.threads or 1)
    return Bundle(cpus, 1 / workers_per_gpu(len(start.workers), cluster_gpus) if on_gpu else 0.0)


def workers_per_gpu(num_workers: int, cluster_gpus: float) -> int:
    """How many workers one GPU has to take."""
    return max(1, math.ceil(num_workers / cluster_gpus)) if cluster_gpus >= 1 else 1


def missing(bundle: Bundle, num_workers: int, cluster: Mapping[str, float], free: Mapping[str, float]) -> str | None:
    """One line for a cluster that could not hold the workers even if it were idle, naming what it lacks; else None."""
    lacks = [
        f"{counted(amount * num_workers, name)}, the cluster has {cluster.get(name, 0.0):g} "
        f"({free.get(name, 0.0):g} free)"
        for name, amount in bundle.resources().items()
        if amount * num_workers > cluster.get(name, 0.0) + 1e-3  # Ray counts in ten-thousandths
    ]
    who = "1 worker needs" if num_workers == 1 else f"{num_workers} workers need"
    return f"{who} " + "; ".join(lacks) if lacks else None


def placed(worker: WorkerStart, host: str, per_gpu: int) -> WorkerStart:
    """A worker's start line where Ray put it: there its GPU is the first one, and it listens on `host`."""
    if worker.device == "cpu":
        return replace(worker, listen=_address(host))
    share = worker.config.gpu_memory_utilization / per_gpu
    config = replace(worker.config, gpu_memory_utilization=share)
    return replace(worker, device="cuda:0", listen=_address(host), config=config, shares_gpu=per_gpu > 1)


def listen_hosts(node_ips: Sequence[str], own_ip: str) -> list[str]:
    """Where each worker listens: loopback while all of them are on this machine, else its node's address.

    Once one is elsewhere all have to be reachable: workers connect to each other.
    """
    return ["127.0.0.1"] * len(node_ips) if set(node_ips) <= {own_ip} else list(node_ips)


def _address(host: str) -> str:
    return f"[{host}]:0" if ":" in host else f"{host}:0"
