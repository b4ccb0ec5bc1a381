"""Building the native kernels for this machine: `python -m engine.native`.

One shared object beside the sources, named after what it was made from and for which CPU; it needs a C++ compiler and
nothing else (no torch headers). Another CPU or another source is another name, so that a stale one is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
BUILT = Path(__file__).parent / "_built"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fPIC",
    "-pthread",
    "-Wall",
    "-Wno-psabi",
)
COMPILE_TIMEOUT_S = 300.0


def library_path() -> Path:
    """Where this machine's kernels are once they are built."""
    digest = hashlib.sha256("\n".join((*FLAGS, cpu_features())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return BUILT / f"pdserve-{digest.hexdigest()[:16]}.so"


def cpu_features() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def build(compiler: str | None = None) -> Path:
    """Compile what is not built yet; returns the library.

    Safe to call from several processes at once. Raises RuntimeError with the compiler's words.
    """
    target = library_path()
    if is_whole(target):
        return target
    compiler = compiler or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError(
            "no C++ compiler found; install g++ or clang++, or name one: python -m engine.native COMPILER"
        )
    BUILT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as directory:
        objects = [Path(directory) / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.cpp"))]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(
                pool.map(lambda made: _run(compiler, "-c", str(SOURCES / f"{made.stem}.cpp"), "-o", str(made)), objects)
            )
        made = Path(directory) / "library.so"
        _run(compiler, "-shared", "-o", str(made), *map(str, objects))
        _seal(target).write_text(_digest(made))
        made.replace(target)
    for stale in BUILT.glob("pdserve-*"):
        if stale.name.partition(".")[0] != target.stem:
            stale.unlink(missing_ok=True)
    return target


def is_whole(library: Path) -> bool:
    """Whether the library is there, and is what was built: a damaged one would kill whoever loads it."""
    try:
        return _seal(library).read_text() == _digest(library)
    except OSError:
        return False


def _seal(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _run(compiler: str, *args: str) -> None:
    command = [compiler, *FLAGS, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
