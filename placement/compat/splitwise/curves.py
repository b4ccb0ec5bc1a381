"""Splitwise's measured curves, the models they are of, and the machines of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from placement.compat.document import Node, read_document
from placement.compat.errors import ProfileError
from placement.compat.splitwise.measurements import SCHEMA, read_measurements

GPU_BYTES = 80 * 1024**3
MS = 1000.0


@dataclass(frozen=True, slots=True)
class Model:
    """What the memory rule needs; float16."""

    hidden: int
    layers: int
    weight_bytes: int

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return 2 * self.hidden * self.layers * 2


MODELS = {
    "bloom-176b": Model(14336, 70, 329_000_000_000),
    "llama2-70b": Model(8192, 80, 135_000_000_000),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """Times of an iteration over the tokens in its batch, of one model on one kind of machine."""

    gpu: str
    tp: int
    tokens: tuple[float, ...]  # increasing, two at least
    prompt_s: tuple[float, ...]
    token_s: tuple[float, ...]

    @property
    def room_bytes(self) -> int:
        return self.tp * GPU_BYTES


@dataclass(frozen=True, slots=True)
class Machines:
    """So many of one kind."""

    curve: Curve
    num: int


def model_of(name: str) -> Model:
    if name not in MODELS:
        raise ProfileError(f"--model is {name!r}; Splitwise's rules are known for {', '.join(MODELS)}")
    return MODELS[name]


def read_curve(path: Path, model: str, gpu: str, tp: int) -> Curve:
    """One curve of a file of tables, or of measured runs (.csv). Raises ProfileError, one line."""
    root = read_measurements(path) if path.suffix == ".csv" else read_document(path)
    schema = root.get("schema").value
    if schema != SCHEMA:
        raise ProfileError(f"{path}: schema is {schema!r}; it must be {SCHEMA!r}")
    known = []
    for node in root.get("curves").items():
        key = (node.get("model").value, node.get("gpu").value, node.get("tp").count())
        if key == (model, gpu, tp):
            return _curve(node, gpu, tp)
        known += [f"{key[1]} tp={key[2]}"] if key[0] == model else []
    raise ProfileError(f"{path}: has no {model!r} on {gpu} tp={tp}; it has it on {'; '.join(known) or 'nothing'}")


def _curve(node: Node, gpu: str, tp: int) -> Curve:
    columns: list[Sequence[float]] = []
    points = node.get("batch_tokens").items()
    if len(points) < 2:
        raise node.get("batch_tokens").wrong("a list of two points or more")
    for name in ("batch_tokens", "prompt_ms", "token_ms"):
        columns.append([cell.number() for cell in node.get(name).items(len(points))])
    tokens, prompt_ms, token_ms = columns
    if any(later <= earlier for earlier, later in pairwise(tokens)):
        raise node.get("batch_tokens").wrong("a list of growing numbers")
    for name, column in (("prompt_ms", prompt_ms), ("token_ms", token_ms)):
        if min(column) <= 0:
            raise node.get(name).wrong("a list of numbers above 0")
    seconds = [tuple(value / MS for value in column) for column in (prompt_ms, token_ms)]
    return Curve(gpu, tp, tuple(tokens), *seconds)
