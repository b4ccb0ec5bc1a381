"""What numba keeps on disk is of these sources and no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import placement

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
