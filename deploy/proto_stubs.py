"""Generates pdserve/v1 from proto/ with the oldest grpcio-tools that pyproject.toml allows (`make proto`).

Newer output refuses older runtimes, so the oldest tools are kept apart in .venv/oldest-grpc.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_GRPC = ROOT / ".venv" / "oldest-grpc"


def generate(output: Path) -> None:
    """Write the stubs of every source below `output` (as pdserve/v1/*_pb2*.py)."""
    sources = sorted((ROOT / "proto").rglob("*.proto"))
    environment = {**os.environ, "PYTHONPATH": str(OLDEST_GRPC)}
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
        f"--python_out={output}", f"--pyi_out={output}", f"--grpc_python_out={output}",
        *map(str, sources),
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    generate(ROOT)
