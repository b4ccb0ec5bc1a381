"""What numba keeps on disk is of these sources and no others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import placement
from deploy.planning.compiling import tell_if_compiling

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from placement.outer import twice
print(twice(3))
"""
OUTER = """
from placement.compiled import compiled
from placement.inner import once
@compiled
def twice(x):
    return 2 * once(x)
"""
INNER = """
from placement.compiled import compiled
@compiled
def once(x):
    return x + {added}
"""


def test_a_change_of_a_called_function_alone_is_compiled_anew(tmp_path: Path) -> None:
    package = tmp_path / "placement"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(Path(placement.__path__[0]) / "compiled.py", package)
    (package / "outer.py").write_text(OUTER)
    said = []
    for added in (1, 1, 5):
        (package / "inner.py").write_text(INNER.format(added=added))
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
        )
        said.append(int(ended.stdout))
    assert said == [8, 8, 16]
    assert len(list((package / "__pycache__").glob("numba-*/**/*.nbi"))) >= 4  # two functions, two states


def test_the_machine_code_of_no_more_than_five_states_is_kept(tmp_path: Path) -> None:
    package = tmp_path / "placement"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(Path(placement.__path__[0]) / "compiled.py", package)
    for age in range(8):
        old = package / "__pycache__" / f"numba-{age}"
        old.mkdir(parents=True)
        os.utime(old, (1e9 - age, 1e9 - age))
    program = "import sys; sys.path.insert(0, sys.argv[1]); import placement.compiled"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=120, check=True)
    left = {path.name for path in (package / "__pycache__").glob("numba-*")}
    assert len(left) == 5 and {"numba-0", "numba-1", "numba-2", "numba-3"} < left


def test_whether_a_function_is_still_to_be_compiled_is_known_before(tmp_path: Path) -> None:
    package = tmp_path / "placement"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(Path(placement.__path__[0]) / "compiled.py", package)
    (package / "inner.py").write_text(INNER.format(added=1))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from placement.compiled import is_on_disk; "
        "from placement.inner import once; print(is_on_disk(once)); once(1); print(is_on_disk(once))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    said = [subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout for _ in range(2)]
    assert said == ["False\nTrue\n", "True\nTrue\n"]


def test_compiling_is_said_once_and_not_of_what_is_on_disk(capsys: pytest.CaptureFixture[str]) -> None:
    kept_nowhere = numba.njit(lambda x: x)
    for _ in range(2):
        tell_if_compiling(kept_nowhere)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("compiling the simulator")
    assert "later runs" not in err and "NUMBA_CACHE_DIR" in err
    tell_if_compiling()
    assert capsys.readouterr().err == ""
