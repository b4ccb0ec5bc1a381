"""The generated stubs are the sources', and load on the oldest gRPC that pyproject.toml allows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.proto_stubs import OLDEST_GRPC, generate

ROOT = Path(__file__).resolve().parent.parent
STUBS = ROOT / "pdserve" / "v1"

needs_oldest = pytest.mark.skipif(
    not (OLDEST_GRPC / "grpc_tools").is_dir(), reason="the oldest grpcio-tools are not installed (make env)"
)


def run_on_oldest(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(OLDEST_GRPC), str(ROOT)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@needs_oldest
def test_committed_stubs_are_the_generated_ones(tmp_path: Path) -> None:
    """`make proto` would change nothing: same files, same bytes."""
    generate(tmp_path)
    generated = {path.name: path.read_text() for path in (tmp_path / "pdserve" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in STUBS.glob("*_pb2*")}
    assert sorted(generated) == sorted(committed)
    assert [name for name in generated if generated[name] != committed[name]] == []


@needs_oldest
def test_stubs_load_on_the_oldest_runtime() -> None:
    """Newer output refuses older runtimes: all modules import where only the oldest is found first."""
    modules = ", ".join(f"pdserve.v1.{path.stem}" for path in sorted(STUBS.glob("*_pb2*.py")))
    done = run_on_oldest(f"import grpc, google.protobuf as p\nimport {modules}\nprint(grpc.__version__, p.__version__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1.71.0", "5.29.1"], "the runtime under test is not the oldest one (make env)"


def test_stubs_ask_for_no_newer_runtime_than_pyproject_allows() -> None:
    """The versions written into the stubs are at most the floors of pyproject.toml."""
    project = (ROOT / "pyproject.toml").read_text()
    for package, pattern in (
        ("grpcio", r"GRPC_GENERATED_VERSION = '([\d.]+)'"),
        ("protobuf", r"Python Version: ([\d.]+)"),
    ):
        found = re.search(rf'"{package}>=([\d.]+)"', project)
        assert found is not None
        floor = version(found[1])
        written = [version(one) for path in STUBS.glob("*_pb2*.py") for one in re.findall(pattern, path.read_text())]
        assert written
        assert max(written)[: len(floor)] <= floor


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
