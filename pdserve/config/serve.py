"""What a whole cluster is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdserve.config.router import RouterConfig
from pdserve.config.worker import WorkerConfig
from pdserve.settings import address_problems, limits, setting


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
    router: RouterConfig = field(default_factory=RouterConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)

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
