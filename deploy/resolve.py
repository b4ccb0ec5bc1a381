"""From what was asked to what is started: every "auto" and None decided by the checkpoint and the machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.checkpoint import Checkpoint, check_checkpoint
from deploy.cores import Share, divide, shown, this_machine
from deploy.gpus import Gpu, Gpus, find_gpus, spread, usable_gpus
from deploy.hub import model_directory
from deploy.kv_size import check_kv_room
from deploy.machine import available_bytes
from deploy.models.demo_model import demo_model_directory
from deploy.safetensors_headers import BadCheckpoint
from deploy.words import counted
from kv_transfer.selection import HOST_TRANSPORTS
from kv_transfer.transports.gpu_choice import GPU_TRANSPORTS, GpuPlace, obstacle
from pdserve.config import ServeConfig, WorkerConfig, WorkerStart
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from scheduling.latency import load_profile

log = logging.getLogger(__name__)

CPU_KV_BYTES = 1 << 30
MOCK_KV_BYTES = 1 << 26  # its KV is small: a million tokens
CPU_KV_SHARE = 0.25  # of the available memory, over all workers
CPU_CONTEXT = 8192  # the default context on a CPU at most: a pool of CPU_KV_BYTES holds it with most models
NO_LIMIT_CONTEXT = 8192  # of a model that names none
FLOAT32_PARAMETERS = 200_000_000  # on a CPU larger models are computed in bfloat16
BFLOAT16_CAPABILITY = (8, 0)  # the first cards that multiply in it


@dataclass(frozen=True, slots=True)
class ResolvedServe:
    """All that is known before the first process starts."""

    config: ServeConfig
    checkpoint: Checkpoint
    served_name: str
    max_model_len: int
    worker: WorkerConfig  # nothing left open but kv_bytes on a GPU
    devices: tuple[str, ...]  # one per worker, prefill workers first
    shares: tuple[Share, ...]  # of this machine's cores, in the same order

    def starts(self, cluster_secret: str) -> list[WorkerStart]:
        """Every worker of the cluster."""
        named = [("prefill", n) for n in range(self.config.prefill)] + [
            ("decode", n) for n in range(self.config.decode)
        ]
        starts = [
            WorkerStart(
                worker_id=f"{role}-{n}",
                role=role,
                model=str(self.checkpoint.path.absolute()),
                device=device,
                cluster_secret=cluster_secret,
                listen="127.0.0.1:0",
                config=self._share(device),
                processors=share.processors,
                shares_gpu=self.config.ray is None and device != "cpu" and self.devices.count(device) > 1,
            )
            for (role, n), device, share in zip(named, self.devices, self.shares, strict=True)
        ]
        return [replace(start, config=_with_own_port(start.config, n)) for n, start in enumerate(starts)]

    def _share(self, device: str) -> WorkerConfig:
        """A worker's settings; those on one GPU divide its memory among them."""
        if device == "cpu":
            return self.worker
        if self.config.ray is not None:
            return self.worker  # divided where Ray placed them
        share = self.worker.gpu_memory_utilization / self.devices.count(device)
        return replace(self.worker, gpu_memory_utilization=share)


def resolve(config: ServeConfig) -> ResolvedServe:
    """Find the model, look at it and at the machine; raises StartError or ConfigError."""
    mock_only = not config.model
    path = demo_model_directory() if mock_only else model_directory(config.model)
    try:
        checkpoint = check_checkpoint(path)
    except BadCheckpoint as error:
        raise StartError(str(error), ExitCode.MODEL) from None
    if config.worker.mock is not None:
        _check_profile(Path(config.worker.mock))
    num_workers = config.prefill + config.decode
    _check_transport(config)
    devices, cards = _devices(config, num_workers)
    max_model_len = _context(config.worker, checkpoint)
    dtype = _dtype(config.worker, checkpoint, cards)
    shares = _shares(config, num_workers)
    worker = replace(config.worker, dtype=dtype, max_model_len=max_model_len, threads=shares[0].threads)
    worker = _defaults(worker, num_workers)
    check_kv_room(worker, checkpoint.kv_elements, max_model_len)
    name = config.router.served_model_name or ("mock" if mock_only else config.model)
    return ResolvedServe(config, checkpoint, name, max_model_len, worker, devices, shares)


def _on_gpu(config: ServeConfig) -> bool:
    return config.worker.device == "cuda" and config.worker.mock is None


def _check_transport(config: ServeConfig) -> None:
    """The name must be one of the device's."""
    name = config.worker.kv_transport
    if not _on_gpu(config) and name in GPU_TRANSPORTS:
        raise StartError(
            f"--kv-transport is {name}; it moves KV between GPUs: give auto, {', '.join(HOST_TRANSPORTS)}, or --device "
            "cuda without --mock",
            ExitCode.ENVIRONMENT,
        )
    if _on_gpu(config) and name in HOST_TRANSPORTS:
        raise ConfigError(
            [f"--kv-transport is {name}; with --device cuda it must be auto or one of {', '.join(GPU_TRANSPORTS)}"]
        )


def _with_own_port(config: WorkerConfig, position: int) -> WorkerConfig:
    """The settings of the worker at that position: each has a port of its own for its metrics."""
    if not config.worker_metrics_port:
        return config
    return replace(config, worker_metrics_port=config.worker_metrics_port + position)


def _devices(config: ServeConfig, num_workers: int) -> tuple[tuple[str, ...], tuple[Gpu, ...]]:
    """One device per worker, prefill workers first; the cards, where they are this machine's GPUs."""
    if not _on_gpu(config):
        return ("cpu",) * num_workers, ()
    if config.ray is not None:
        return ("cuda:0",) * num_workers, ()  # each sees the GPU that Ray gives it; how many there are, Ray knows
    found = find_gpus()
    cards = usable_gpus(found)
    numbers = spread(config.prefill, config.decode, len(cards))
    _check_links(config, found, numbers)
    log.info("GPUs: %s; workers on %s", ", ".join(one.name for one in cards), ", ".join(map(str, numbers)))
    return tuple(f"cuda:{number}" for number in numbers), cards


def _check_links(config: ServeConfig, found: Gpus, numbers: tuple[int, ...]) -> None:
    """A transport that was asked for by name must work between every two workers that will hand over."""
    name = config.worker.kv_transport
    if name == "auto":
        return
    for theirs in numbers[: config.prefill]:
        for mine in numbers[config.prefill :]:
            places = (GpuPlace("here", f"cuda:{number}", found.nccl) for number in (mine, theirs))
            reason = obstacle(name, *places, peer_access=theirs in found.cards[mine].reads)
            if reason is not None:
                raise StartError(f"--kv-transport is {name}; {reason}: give auto", ExitCode.ENVIRONMENT)


def _context(worker: WorkerConfig, checkpoint: Checkpoint) -> int:
    longest = checkpoint.max_position
    if worker.max_model_len is not None:
        if longest is not None and worker.max_model_len > longest:
            raise ConfigError([f"--max-model-len is {worker.max_model_len}; it must be at most the model's, {longest}"])
        return worker.max_model_len
    if worker.device == "cpu" and (longest is None or longest > CPU_CONTEXT):
        log.info("context limited to %d tokens (the model: %s); --max-model-len raises it", CPU_CONTEXT, longest)
        return CPU_CONTEXT
    return longest or NO_LIMIT_CONTEXT


def _dtype(worker: WorkerConfig, checkpoint: Checkpoint, cards: Sequence[Gpu]) -> str:
    old = next((card for card in cards if card.capability < BFLOAT16_CAPABILITY), None)
    if worker.dtype == "bfloat16" and old is not None:
        shown = ".".join(map(str, old.capability))
        raise ConfigError([f"--dtype is bfloat16; {old.name} (compute capability {shown}) has none: give float16"])
    if worker.dtype != "auto":
        return worker.dtype
    if worker.device == "cpu":
        return "float32" if checkpoint.num_parameters < FLOAT32_PARAMETERS else "bfloat16"
    return "float16" if old is not None or checkpoint.stored_dtype == "float16" else "bfloat16"


def _shares(config: ServeConfig, num_workers: int) -> tuple[Share, ...]:
    """Threads and cores of each worker; equal, whatever its role."""
    worker = config.worker
    threads, pin = worker.threads, worker.pin_cores
    if config.ray is not None or worker.device != "cpu" or worker.mock is not None:
        pin = "off"  # Ray knows the machines; a GPU's workers need no core for long
    machine = this_machine()
    shares = tuple(divide(machine, num_workers, threads, pin))
    if threads is not None and shares[0].threads < threads:
        log.warning(
            "--threads is %d: each worker has %d cores of its own and computes with as many threads; --pin-cores off "
            "gives it more",
            threads, shares[0].threads,
        )  # fmt: skip
    if shares[0].threads * num_workers > max(len(machine.cores), num_workers) and worker.mock is None:
        log.warning(
            "--threads is %d: %d threads in all on %d cores wait for one another, which is slower than fewer",
            shares[0].threads, shares[0].threads * num_workers, len(machine.cores),
        )  # fmt: skip
    where = "; ".join(shown(share.processors) for share in shares) if shares[0].processors else "not pinned"
    quota = "" if machine.quota is None else f", of which a quota grants {machine.quota:g}"
    log.info(
        "%d cores%s: %d threads in each worker, processors: %s",
        len(machine.cores), quota, shares[0].threads, where,
    )  # fmt: skip
    return shares


def _defaults(worker: WorkerConfig, num_workers: int) -> WorkerConfig:
    """What depends on the device and on how many share the machine."""
    cpu = worker.device == "cpu"
    kv_bytes = worker.kv_bytes
    if kv_bytes is None and (cpu or worker.mock is not None):
        kv_bytes = min(
            CPU_KV_BYTES if worker.mock is None else MOCK_KV_BYTES, int(available_bytes() * CPU_KV_SHARE) // num_workers
        )
    elif cpu and kv_bytes is not None and kv_bytes * num_workers > available_bytes():
        raise StartError(
            f"--kv-bytes is {kv_bytes:,} for each of {counted(num_workers, 'worker')}; together at most "
            f"{available_bytes():,} bytes are available",
            ExitCode.ENVIRONMENT,
        )
    max_num_seqs = worker.max_num_seqs or (64 if cpu else 256)
    max_num_batched_tokens = worker.max_num_batched_tokens or max(512 if cpu else 8192, max_num_seqs)
    if max_num_batched_tokens < max_num_seqs:
        given = f"--max-num-batched-tokens is {max_num_batched_tokens}"
        raise ConfigError([f"{given}; it must be at least max-num-seqs, {max_num_seqs}: every decode is in every step"])
    return replace(
        worker,
        kv_bytes=kv_bytes,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def _check_profile(path: Path) -> None:
    try:
        load_profile(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
        raise ConfigError([f"--mock is {path}; {reason}"]) from None
