"""What is planned for: model, hardware, step times, from flags."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deploy.planning.profile import THIS_MACHINE, FromProfile
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.hardware.catalogue import GpuType, gpu_type
from placement.hardware.this_machine import this_machine
from placement.latency.fitted_profile import Subject
from placement.latency.served import ServedSteps
from placement.latency.shape import KNOWN_SHAPES, ModelShape, shape_from_config
from placement.search.build import Serving
from placement.workload.source import WorkloadSource
from placement.workload.spec import WorkloadSpec, parse_workload_spec

SAMPLE = 20_000  # requests, to see how long they may be
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_WEIGHTS_NEAR = 0.05  # norms, biases: what a shape does not count
_MANY_TOKENS = 1e6  # in a step: they reach every expert


def model_shape(name: str) -> ModelShape:
    """A known model's name, a checkpoint directory, or a config.json. Errors: StartError (exit code 4)."""
    if (known := KNOWN_SHAPES.get(name.lower())) is not None:
        return known
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise StartError(
            f"--model is {name!r}; it must be a directory with a config.json or one of {', '.join(KNOWN_SHAPES)}",
            ExitCode.MODEL,
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, Mapping):
            raise ValueError("is no JSON object")
        return shape_from_config(path.parent.name or "model", config)
    except (OSError, ValueError, RecursionError) as error:
        raise StartError(f"--model {path}: {error}", ExitCode.MODEL) from None


def gpus(flag: str, text: str, memory_bytes: float | None = None) -> tuple[GpuType, ...]:
    """Names with commas between. Errors: ConfigError."""
    found = []
    for name in text.split(","):
        try:
            found.append(this_machine(memory_bytes) if name.strip() == THIS_MACHINE else gpu_type(name.strip()))
        except ValueError as error:
            raise ConfigError([f"{flag}: {error}, or {THIS_MACHINE}"]) from None
    return tuple(found)


def workload_of(text: str) -> tuple[WorkloadSpec, WorkloadSource]:
    """--workload. Errors: ConfigError for the words, WorkloadError (exit code 5) for the file."""
    spec = parse_workload_spec(text)
    return spec, WorkloadSource(spec)


def goes_by_another_name(model: ModelShape, subject: Subject) -> bool:
    """Whether what was measured is called otherwise than what is planned for."""
    return Path(subject.model).name.lower() != model.name.lower()


def measured_shape(model: ModelShape, subject: Subject, path: Path) -> ModelShape:
    """The model in the precision that was measured. Errors: ConfigError where another model was measured.

    By another name it may be the same one: so its sizes must be equal.
    """
    size = _BYTES.get(subject.dtype, 2.0)
    shape = replace(model, bytes_per_weight=size, bytes_per_kv=size)
    other = goes_by_another_name(model, subject)
    read = shape.read_weight_bytes(_MANY_TOKENS)
    if other and subject.weight_bytes and abs(read / subject.weight_bytes - 1.0) > _WEIGHTS_NEAR:
        raise ConfigError(
            [f"--profile {path} is of {subject.model}, a step of which reads {subject.weight_bytes:,} bytes of weights "
             f"in {subject.dtype}; one of --model {model.name} reads {read:,.0f}"]
        )  # fmt: skip
    if shape.kv_bytes_per_token == subject.kv_bytes_per_token:
        return shape
    if other:
        raise ConfigError(
            [f"--profile {path} is of {subject.model}, whose KV has {subject.kv_bytes_per_token:,} bytes a token in "
             f"{subject.dtype}; that of --model {model.name} has {shape.kv_bytes_per_token:,.0f}"]
        )  # fmt: skip
    return replace(shape, bytes_per_kv=size * subject.kv_bytes_per_token / shape.kv_bytes_per_token)


def serving_of(args: argparse.Namespace, source: WorkloadSource, measured: FromProfile | None) -> Serving:
    """How workers are run, from the flags that plan and simulate share. Errors: ConfigError, StartError."""
    model = model_shape(args.model)
    shared = _shared(args, measured) if args.one_machine else None
    if measured is not None and measured.subject is not None:
        model = measured_shape(model, measured.subject, args.profile)
    longest = source.recorded or source.build(rate=1.0, num_requests=SAMPLE)
    needed = int((longest.prompt_tokens + longest.output_tokens).max())
    if args.max_model_len is not None and args.max_model_len < needed:
        raise ConfigError(
            [f"--max-model-len is {args.max_model_len}; the workload's longest request has {needed:,} tokens"]
        )
    serving = Serving(
        model=model,
        max_model_len=args.max_model_len or needed + 1,
        block_size=args.block_size or 16,
        max_num_seqs=args.max_num_seqs or 256,
        prefix_caching=not args.no_enable_prefix_caching,
        kv_bytes=args.kv_bytes,
        slowdown=None if shared is None else shared.slowdown,
        warming=None if shared is None else shared.warming,
        jitter=None if shared is None else shared.jitter,
    )
    return serving if measured is None else measured.applied(serving)


def more_room(serving: Serving) -> str:
    """What to do where not even one request has room in a worker's KV memory; empty: take other GPUs."""
    return "" if serving.kv_bytes is None else "; give more --kv-bytes, or leave it out"


def _shared(args: argparse.Namespace, measured: FromProfile | None) -> ServedSteps:
    """--one-machine. Errors: ConfigError."""
    problems = []
    if measured is None or measured.served is None:
        problems.append(
            "--one-machine needs --profile with what workers cost one another: `pdserve profile MODEL -o PROFILE.json` "
            "measures it on a CPU, without --mock-delays and --no-delays"
        )
    if args.kv_bytes is None:
        problems.append("--one-machine needs --kv-bytes, of each worker: they share the machine's memory too")
    if getattr(args, "affinity", None) == "low":
        problems.append("--one-machine is one cluster, --affinity low may plan several: leave it out")
    if problems or measured is None or measured.served is None:
        raise ConfigError(problems)
    return measured.served
