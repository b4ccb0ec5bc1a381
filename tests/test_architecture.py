"""The table of who may import whom, and the things that no part of the product may do (docs: the layout table)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from placement.compiled_sources import FOLLOWED

ROOT = Path(__file__).resolve().parent.parent

GROUND = {"pdserve", "scheduling"}
BELOW_WORKER = GROUND | {"engine", "kv_transfer"}
MAY_IMPORT = {
    "pdserve": set[str](),
    "scheduling": {"pdserve"},
    "engine": GROUND,
    "kv_transfer": GROUND,
    "worker": BELOW_WORKER,
    "prefill_worker": BELOW_WORKER | {"worker"},
    "decode_worker": BELOW_WORKER | {"worker"},
    "router": GROUND,
    "placement": GROUND,
    "bench": BELOW_WORKER | {"worker", "prefill_worker", "decode_worker", "router", "placement", "deploy.models"},
    "deploy": BELOW_WORKER | {"worker", "prefill_worker", "decode_worker", "router", "placement", "bench"},
}
"""Folder -> what it may import beside itself (a dotted name allows that part only)."""

NO_HEAVY_IMPORT = {"pdserve": {"torch", "ray", "transformers"}, "scheduling": {"torch", "ray", "transformers", "grpc"}}
HTTP_STACK = {"starlette", "uvicorn", "httpx", "fastapi"}
NO_HTTP = ("pdserve", "scheduling", "engine", "kv_transfer", "worker", "prefill_worker", "decode_worker")
NO_RAY = tuple(folder for folder in MAY_IMPORT if folder not in {"deploy", "bench"})

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "rpyc"}
UNSAFE_CALLS = {"eval", "exec", "__import__"}
UNSAFE_ATTRIBUTES = {
    "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "dist.send_object_list", "dist.recv_object_list", "dist.broadcast_object_list", "dist.all_gather_object",
    "dist.gather_object", "dist.scatter_object_list",
}  # fmt: skip
UNSAFE_KEYWORDS = {"allow_pickle", "trust_remote_code"}
MAY_READ_ENVIRONMENT = {"deploy"}  # and every __main__.py

MAX_LINES = 350
LISTED_LINES = 250


def product_files() -> list[Path]:
    files = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in files if not path.is_relative_to(ROOT / "pdserve" / "v1")]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a file imports, wherever in the file."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(allowed + ".")


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, empty when it starts from anything but a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def refuse(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def test_every_folder_of_the_product_is_in_the_table() -> None:
    """A new top-level package has to say what it may import."""
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line} - {"tests"}
    refuse(sorted(folders - set(MAY_IMPORT)))


def test_imports_point_down() -> None:
    """No folder imports a sibling or anything above it."""
    found = []
    for path in product_files():
        allowed = MAY_IMPORT[folder_of(path)] | {folder_of(path)}
        for line, name in imports_of(path):
            if name.split(".")[0] in MAY_IMPORT and not any(within(name, other) for other in allowed):
                found.append(f"{name_of(path)}:{line} imports {name}")
    refuse(found)


def test_changes_of_all_that_compiled_code_may_import_are_noticed() -> None:
    assert set(FOLLOWED) == MAY_IMPORT["placement"] | {"placement"}


def test_the_ground_is_light() -> None:
    """pdserve and scheduling import without torch and Ray; only deploy knows Ray; workers know no HTTP."""
    found = []
    for path in product_files():
        folder = folder_of(path)
        refused = NO_HEAVY_IMPORT.get(folder, set()) | (HTTP_STACK if folder in NO_HTTP else set())
        refused = refused | ({"ray"} if folder in NO_RAY else set())
        found += [
            f"{name_of(path)}:{at} imports {name}" for at, name in imports_of(path) if name.split(".")[0] in refused
        ]
    refuse(found)


def test_the_ground_loads_without_torch() -> None:
    """The same at run time, through every module: nothing drags torch or Ray in."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in product_files()
        if folder_of(path) in GROUND and path.stem != "__main__"
    ]
    code = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "print([m for m in ('torch', 'ray', 'transformers', 'starlette') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_import_inside_a_function_below_deploy() -> None:
    """Lazy imports are for deploy's subcommands; elsewhere they would hide a circle among our own packages."""
    found = []
    for path in product_files():
        if folder_of(path) == "deploy":
            continue
        for function in (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).split(".")[0] in MAY_IMPORT):
                    found.append(f"{name_of(path)}:{node.lineno} imports {node.module} inside {function.name}()")
    refuse(found)


def test_nothing_unpickles_or_evaluates() -> None:
    """No deserializer that can run code, no eval or exec (RELIABILITY: untrusted surfaces)."""
    found = []
    for path in product_files():
        for line, name in imports_of(path):
            if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_ATTRIBUTES:
                found.append(f"{name_of(path)}:{line} imports {name}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                found.append(f"{name_of(path)}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.Attribute):
                name = dotted(node)
                if name in UNSAFE_ATTRIBUTES or name.removeprefix("torch.distributed.") in {
                    unsafe.removeprefix("dist.") for unsafe in UNSAFE_ATTRIBUTES
                }:
                    found.append(f"{name_of(path)}:{node.lineno} uses {name}")
            if isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS and not is_false(node.value):
                found.append(f"{name_of(path)}:{node.lineno} sets {node.arg}")
    refuse(found)


def test_nothing_below_the_edge_reads_the_environment() -> None:
    """Configuration comes in as data; the environment is read in deploy and in the mains."""
    found = []
    for path in product_files():
        if folder_of(path) in MAY_READ_ENVIRONMENT or path.name == "__main__.py":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and dotted(node) in {"os.environ", "os.getenv", "os.putenv"}:
                found.append(f"{name_of(path)}:{node.lineno} reads the environment")
        found += [f"{name_of(path)}:{at} imports {name}" for at, name in imports_of(path)
                  if name in {"os.environ", "os.getenv"}]  # fmt: skip
    refuse(found)


def test_only_declared_dependencies_are_imported() -> None:
    """What the product imports is its own, the standard library's, or named in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    distributions = {canonical(re.split(r"[\[<>=!~; ]", one)[0]) for one in declared}
    owners = packages_distributions()
    found = []
    for path in product_files():
        for line, name in imports_of(path):
            top = name.split(".")[0]
            if top in MAY_IMPORT or top in sys.stdlib_module_names:
                continue
            names = {canonical(owner) for owner in owners.get(top, [top])}
            if not names & distributions:
                found.append(f"{name_of(path)}:{line} imports {name}, which pyproject.toml does not name")
    refuse(found)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_nothing_outside_the_repository_is_named() -> None:
    """No tracked file names a path of the machine that it was written on."""
    places = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/(?!\*)[\w.]+")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file() or path.stat().st_size > 2_000_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: names {match}" for match in sorted(set(places.findall(text)))]
    refuse(found)


def test_files_are_short() -> None:
    """A file fits in a head: an error above the limit, listed on the way there."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in product_files()}
    refuse([f"{name}: {lines} lines, limit {MAX_LINES}" for name, lines in lengths.items() if lines > MAX_LINES])
    long = [f"{name} ({lines})" for name, lines in lengths.items() if lines > LISTED_LINES]
    print(f"files over {LISTED_LINES} lines:", ", ".join(long) or "none")


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_a_package_defines_nothing_in_its_init(folder: str) -> None:
    """__init__.py lists public names; code lives in files named for what they hold."""
    for path in (path for path in product_files() if path.name == "__init__.py" and folder_of(path) == folder):
        allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign)
        refuse([f"{name_of(path)}:{node.lineno}" for node in tree_of(path).body if not isinstance(node, allowed)])
