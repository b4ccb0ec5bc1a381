"""A `pdserve plan` or `simulate` with good flags, and a profile to give it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from deploy.cli import main
from placement.latency.fitted_points import StepPoint
from placement.latency.fitted_profile import Subject, make_profile, profile_to_json

Run = Callable[..., tuple[int, str]]
RunWith = Callable[[str, Mapping[str, object], Mapping[str, object]], tuple[int, str]]
WithSubject = Callable[..., Path]
PLAN = {
    "model": "llama-3.1-8b", "workload": "input=100..400,output=1..40", "gpus": 3, "slo-ttft": 0.2, "slo-tpot": 0.02,
    "processes": 1, "quick": True, "tp": "1", "chunk": "512",
}  # fmt: skip
SIMULATE = {"model": "llama-3.1-8b", "workload": "input=100..400,output=1..40", "decode": "workers=1", "rate": 5}


@pytest.fixture
def run_with(capsys: pytest.CaptureFixture[str]) -> RunWith:
    """Run a command with flags, some of them replaced (None: left out, a list: each); exit code and what it printed."""

    def call(command: str, flags: Mapping[str, object], changes: Mapping[str, object]) -> tuple[int, str]:
        flags = {**flags, **{name.replace("_", "-"): value for name, value in changes.items()}}
        given = []
        for name, value in flags.items():
            for one in value if isinstance(value, list) else [value]:
                given += [] if one is None else [f"--{name}"] if one is True else [f"--{name}={one}"]
        try:
            code = main([command, *given])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr())

    return call


@pytest.fixture
def run(run_with: RunWith) -> Run:
    """Run `plan` or `simulate` with good flags and changes to them."""
    return lambda command, **changes: run_with(command, PLAN if command == "plan" else SIMULATE, changes)


@pytest.fixture
def with_subject() -> WithSubject:
    """Writes a profile of two kinds of step, as `pdserve profile` would for a worker of this machine."""

    def write(path: Path, **changes: object) -> Path:
        subject = {
            "model": "llama-3.1-8b", "kv_bytes_per_token": 131072, "weight_bytes": 0, "dtype": "bfloat16",
            "device": "cpu", "threads": 1, "kernels": "",
            "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        } | changes  # fmt: skip
        points = [StepPoint(n, n * n / 2, 0, n, 2e-3 + 4e-5 * n, 0.0, 3) for n in (16, 64, 256, 512)]
        points += [StepPoint(0, 0.0, n, 100 * n, 2e-3 + 1e-4 * n, 0.0, 3) for n in (1, 8, 32, 64)]
        path.write_text(json.dumps(profile_to_json(make_profile(Subject(**subject), points))))  # type: ignore[arg-type]
        return path

    return write
