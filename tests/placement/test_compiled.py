"""What numba keeps on disk is of these sources and no others."""

from __future__ import annotations

import dis
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import pytest

import placement
import placement.simulator.fast.kernel
from deploy.planning.compiling import tell_if_compiling
from placement.compiled_sources import FOLLOWED, Sources, is_of, sources_of

SOURCES = Path(placement.__path__[0])
ROOT = SOURCES.parent
FAST, SPLITWISE = "placement/simulator/fast", "placement/compat/splitwise"
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


def empty_package(root: Path) -> Path:
    """One that can compile functions."""
    package = root / "placement"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for path in SOURCES.glob("compiled*.py"):
        shutil.copy(path, package)
    return package


def test_a_change_of_a_called_function_alone_is_compiled_anew(tmp_path: Path) -> None:
    package = empty_package(tmp_path)
    (package / "outer.py").write_text(OUTER)
    said = []
    for added in (1, 1, 5):
        (package / "inner.py").write_text(INNER.format(added=added))
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
        )
        said.append(int(ended.stdout))
    assert said == [8, 8, 16]
    (package / "inner.py").write_text(INNER.format(added=5) + "# said more\n")
    (package / "other.py").write_text("SOMETHING = 1\n")
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, timeout=120, check=True)
    states = list((package / "__pycache__").glob("numba-*"))
    assert len(states) == 2 and all(len(list(one.rglob("*.nbi"))) == 2 for one in states)  # of two functions


def test_the_machine_code_of_no_more_than_eight_states_is_kept(tmp_path: Path) -> None:
    package = empty_package(tmp_path)
    (package / "inner.py").write_text(INNER.format(added=1))
    for age in range(11):
        old = package / "__pycache__" / f"numba-{age}"
        old.mkdir(parents=True)
        os.utime(old, (1e9 - age, 1e9 - age))
    program = "import sys; sys.path.insert(0, sys.argv[1]); import placement.inner"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=120, check=True)
    left = {path.name for path in (package / "__pycache__").glob("numba-*")}
    assert len(left) == 8 and {f"numba-{age}" for age in range(7)} < left


def test_whether_a_function_is_still_to_be_compiled_is_known_before(tmp_path: Path) -> None:
    package = empty_package(tmp_path)
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


def of_folder(folder: str, root: Path = ROOT) -> Sources:
    return sources_of(root / folder, root, "placement.compiled")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that compiled code may import."""
    root = tmp_path_factory.mktemp("tree")
    for name in FOLLOWED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "v1"))
    return root


@pytest.fixture
def edit(tree: Path) -> Iterator[Callable[[str, str, str], None]]:
    """Changes a file of the copy, until the test ends."""
    before: dict[Path, str] = {}

    def change(name: str, old: str, new: str) -> None:
        text = before.setdefault(tree / name, (tree / name).read_text(encoding="utf-8"))
        assert old in text
        (tree / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    yield change
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (f"{FAST}/links.py", "\n    return int(at)", "\n    return int(at) + 0"),
        ("placement/latency/fitted.py", "MAX_KNOTS = 12", "MAX_KNOTS = 13"),
        ("scheduling/routing_policies.py", "AS_SOON = 1.125", "AS_SOON = 1.126"),  # what AS_LIGHT is computed of, too
        ("scheduling/ledger.py", "ON_THE_WAY_S = 0.05", "ON_THE_WAY_S = 0.06"),
        ("placement/compiled.py", '"_nrt": False, ', ""),
    ],
)
def test_editing_what_compiled_code_uses_makes_it_compiled_anew(
    tree: Path, edit: Callable[[str, str, str], None], name: str, old: str, new: str
) -> None:
    before = of_folder(FAST, tree).digest
    edit(name, old, new)
    assert of_folder(FAST, tree).digest != before


def test_editing_anything_else_does_not(tree: Path, edit: Callable[[str, str, str], None]) -> None:
    before = of_folder(FAST, tree)
    paths = [path for path in tree.rglob("*.py") if "from __future__" in path.read_text(encoding="utf-8")]
    others = [path.relative_to(tree) for path in paths]
    assert (
        sum(f"{one}".startswith(("placement/workload", "placement/compat", "placement/search")) for one in others) > 30
    )
    for one in others:
        edit(str(one), "from __future__", "# more is said here\nfrom __future__")
        if not str(one).startswith(FAST):
            edit(str(one), "from __future__ import annotations\n", "from __future__ import annotations\nMORE = 1\n")
    edit(f"{FAST}/run.py", "def _requests(", "def _more() -> None: ...\n\n\ndef _requests(")
    assert of_folder(FAST, tree).digest == before.digest


def test_compiled_code_of_another_folder_has_a_digest_of_its_own(
    tree: Path, edit: Callable[[str, str, str], None]
) -> None:
    before = of_folder(FAST, tree).digest, of_folder(SPLITWISE, tree).digest
    edit(f"{SPLITWISE}/machine.py", "MIXED_FACTOR = 1.1", "MIXED_FACTOR = 1.2")
    assert of_folder(FAST, tree).digest == before[0]
    assert of_folder(SPLITWISE, tree).digest != before[1]


def test_every_function_and_number_that_compiled_code_reads_is_followed() -> None:
    """As numba sees them: by the globals of each function."""
    names = of_folder(FAST).names
    modules = [module for name, module in sys.modules.items() if name.startswith(FAST.replace("/", "."))]
    functions = [one for module in modules for one in vars(module).values() if hasattr(one, "py_func")]
    assert len(functions) > 100
    for function in functions:
        inner, path = function.py_func, f"{function.__module__.replace('.', '/')}.py"
        assert (path, inner.__name__) in names
        loads = {one.argval for one in dis.get_instructions(inner) if one.opname == "LOAD_GLOBAL"}
        read = {name: inner.__globals__[name] for name in loads & inner.__globals__.keys()}
        for name, value in read.items():
            assert (path, name) in names
            if hasattr(value, "py_func"):
                assert (f"{value.__module__.replace('.', '/')}.py", value.__name__) in names


def test_sources_are_followed_again_only_after_a_change(tree: Path, edit: Callable[[str, str, str], None]) -> None:
    listed, folder = tree / "sources.json", tree / FAST
    assert not is_of(listed, folder, tree)
    of_folder(FAST, tree).write(listed)
    assert is_of(listed, folder, tree)
    edit("placement/workload/presets.py", "from __future__", "# more\nfrom __future__")
    assert is_of(listed, folder, tree)
    edit("scheduling/ledger.py", "from __future__", "# more\nfrom __future__")
    assert not is_of(listed, folder, tree)
    of_folder(FAST, tree).write(listed)
    (folder / "new.py").write_text("")
    assert not is_of(listed, folder, tree)
    (folder / "new.py").unlink()
