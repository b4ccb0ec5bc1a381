"""What machine code was compiled of: the functions that are compiled, what they call and the constants they read.

Followed from name to name through the sources, without importing anything: a module that is imported beside them, or
only named by an annotation, plays no part.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLLOWED = ("placement", "scheduling", "pdserve")  # beside the root may lie others' packages


@dataclass(frozen=True, slots=True)
class Sources:
    """Of one folder's compiled functions."""

    digest: str  # the same as long as the same machine code comes of them
    names: frozenset[tuple[str, str]]  # file and name of every function and constant that it comes of
    files: dict[str, str]  # every file that was read -> digest of all of it

    def write(self, path: Path) -> None:
        """As a whole or not at all. Errors: OSError."""
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.files), encoding="utf-8")
        partial.replace(path)


def sources_of(folder: Path, root: Path, decorators: str) -> Sources:
    """Of the functions in a folder that use something out of the module `decorators`; modules lie under `root`.

    What those decorators import is not followed: it may say where machine code is kept, not what it does.

    Cost:    a tenth of a second.
    """
    reader = _Reader(root)
    modules = [reader.module(path) for path in sorted(folder.glob("*.py"))]
    open_ends = [(module, name) for module in modules for name in module.users_of(decorators)]
    seen: dict[tuple[str, str], str] = {}
    while open_ends:
        module, name = open_ends.pop()
        if (module.name, name) in seen:
            continue
        seen[module.name, name] = module.essence(name)
        open_ends += reader.used_by(module, name, module.name != f"{decorators.replace('.', '/')}.py")
    text = json.dumps(sorted((*key, value) for key, value in seen.items()))
    return Sources(_digest(text.encode()), frozenset(seen), {one.name: one.file_digest for one in reader.read})


def is_of(listed: Path, folder: Path, root: Path) -> bool:
    """Whether a list of files, written earlier, is that of the sources as they are now."""
    try:
        files: dict[str, str] = json.loads(listed.read_text(encoding="utf-8"))
        now = {name: _digest((root / name).read_bytes()) for name in files}
    except (OSError, ValueError):
        return False
    return now == files and all(_name(path, root) in files for path in folder.glob("*.py"))


class _Module:
    """One file: which statement gives a name its meaning."""

    def __init__(self, path: Path, root: Path) -> None:
        source = path.read_bytes()
        self.name = _name(path, root)
        self.file_digest = _digest(source)
        self._statements: dict[str, list[ast.stmt]] = {}
        self._imports: dict[str, tuple[str, str]] = {}  # name -> module, and what of it; "": the module itself
        package = path.relative_to(root).parts[:-1]
        for statement in ast.parse(source).body:
            _strip(statement)
            for node in _outside_functions(statement):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    self._imports |= _imported(node, package)
            for name in _bound(statement):
                self._statements.setdefault(name, []).append(statement)

    @property
    def names(self) -> set[str]:
        """All that it gives a meaning."""
        return self._statements.keys() | self._imports.keys()

    def users_of(self, module: str) -> list[str]:
        """Names whose statement uses something of a module."""
        given = {name for name, (origin, _) in self._imports.items() if origin == module}
        return [name for name in self._statements if not given.isdisjoint(one for one, _ in self.uses(name))]

    def uses(self, name: str) -> Iterator[tuple[str, str]]:
        """Names that a name's statement reads, each with the attribute that it reads of it, or nothing."""
        for statement in self._statements.get(name, ()):
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    yield node.value.id, node.attr
                elif isinstance(node, ast.Name):
                    yield node.id, ""

    def origin(self, name: str) -> tuple[str, str] | None:
        """Where a name was imported from."""
        return self._imports.get(name)

    def essence(self, name: str) -> str:
        """All that matters of a name's meaning: neither layout nor comments, annotations and docstrings."""
        return json.dumps([ast.dump(one) for one in self._statements.get(name, ())] or self._imports.get(name))


class _Reader:
    """Reads each file once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules: dict[Path, _Module] = {}

    @property
    def read(self) -> list[_Module]:
        return list(self._modules.values())

    def module(self, path: Path) -> _Module:
        if path not in self._modules:
            self._modules[path] = _Module(path, self._root)
        return self._modules[path]

    def used_by(self, module: _Module, name: str, elsewhere: bool) -> Iterator[tuple[_Module, str]]:
        """What the meaning of a name depends on, also in other modules under the root if `elsewhere`."""
        for used, attribute in [(name, ""), *module.uses(name)]:
            yield module, used
            origin = module.origin(used)
            if origin is None or not elsewhere:
                continue
            of, what = origin
            inner = self._path(f"{of}.{what}" if what else of)
            if inner is None and what and (path := self._path(of)) is not None:
                yield self.module(path), what
            elif inner is not None and attribute:
                whole = self.module(inner)
                yield from ((whole, one) for one in ([attribute] if attribute in whole.names else whole.names))

    def _path(self, module: str) -> Path | None:
        parts = module.split(".")
        if parts[0] not in FOLLOWED:
            return None
        base = self._root.joinpath(*parts)
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imported(statement: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    if isinstance(statement, ast.Import):
        return {one.asname or one.name.partition(".")[0]: (one.name, "") for one in statement.names}
    above = package[: len(package) - statement.level + 1] if statement.level else ()
    module = ".".join((*above, *([statement.module] if statement.module else [])))
    return {one.asname or one.name: (module, one.name) for one in statement.names}


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement of a module gives a meaning, but for imports."""
    nodes = list(_outside_functions(statement))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """A statement of a module and all that runs with it."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def _strip(statement: ast.stmt) -> None:
    """What compiled code does not see."""
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
