"""The text the shipped tokenizer and demo model are made from: the Python standard library, as installed.

It is under the Python Software Foundation licence, it is on every machine that can run this, and a sorted walk over
it is the same for everyone with the same Python version.
"""

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Tables (encodings, pydoc_data), installed packages, tests and programs in another dialect teach nothing legible.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "__pycache__"}
    | {"ensurepip", "_pyrepl", "lib-dynload"}
)
MAX_DOCSTRING_CHARS = 700


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question about the standard library and the docstring that answers it."""

    question: str
    answer: str


def source_files() -> list[Path]:
    """The library's own .py files, in one order on every machine with this Python version."""
    root = Path(os.__file__).parent
    files = [
        path
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
        and not any(part.startswith(("config-", "_sysconfigdata")) for part in path.relative_to(root).parts)
    ]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def source_texts() -> Iterator[str]:
    """Each file's text, in the order of source_files; files that are not UTF-8 are left out."""
    for path in source_files():
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def module_name(path: Path) -> str:
    """The dotted name under which a standard library file is imported."""
    parts = path.relative_to(Path(os.__file__).parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def exchanges() -> Iterator[Exchange]:
    """Questions and answers from the docstrings of public modules, classes and functions, in file order."""
    for path in source_files():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, SyntaxError):
            continue
        yield from _documented(tree, module_name(path))


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[Exchange]:
    docstring = ast.get_docstring(node)
    if docstring and docstring.isascii() and 20 <= len(docstring) <= MAX_DOCSTRING_CHARS:
        verb = "do" if isinstance(node, ast.FunctionDef) else "provide"
        yield Exchange(f"What does {name} {verb}?", docstring)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield from _documented(child, f"{name}.{child.name}")
