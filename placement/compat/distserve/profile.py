"""Latency coefficients in the format of DistServe's measurements: read, checked, and looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from placement.compat.document import Node, read_document
from placement.compat.errors import ProfileError

SCHEMA = "pd-latency-profile/1"
BLOCK_TOKENS = 16
THREE = 3

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Parallel:
    """How one phase is cut over GPUs."""

    tp: int
    pp: int

    @property
    def gpus(self) -> int:
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"tp={self.tp},pp={self.pp}"


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of one engine at one tensor-parallel size; times in milliseconds."""

    prefill: Triple  # constant, per token, per token squared
    decode_small: Triple  # constant, per token of context, per sequence
    decode_large: Triple


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Everything known of one model."""

    name: str
    layers: int
    engines: Mapping[str, Mapping[int, Coefficients]]  # engine -> tp -> coefficients
    kv_capacity: Mapping[tuple[int, int], int]  # (tp, pp) -> tokens
    threshold: int  # decode batches of fewer sequences use the small set
    decode_cap: int  # most tokens of context in a decode batch

    def of_engine(self, engine: str) -> Mapping[int, Coefficients]:
        known = self.engines.get(engine)
        if not known:
            raise ProfileError(
                f"the profile has no coefficients of engine {engine!r} for model {self.name!r}; "
                f"it has {', '.join(name for name, sets in self.engines.items() if sets) or 'none'}"
            )
        return known

    def coefficients(self, engine: str, tp: int, flag: str = "tp") -> Coefficients:
        known = self.of_engine(engine)
        if tp not in known:
            sizes = ", ".join(map(str, sorted(known)))
            raise ProfileError(f"{flag} has tp={tp}; the profile has {self.name!r} on {engine!r} at tp {sizes}")
        return known[tp]

    def capacity(self, parallel: Parallel) -> int | None:
        """KV tokens that fit beside the weights; None where nothing does.

        A pair that the table lacks is read off the line through the table: weights and KV are both cut into tp * pp
        equal parts, so capacity grows linearly with the number of GPUs.
        """
        listed = self.kv_capacity.get((parallel.tp, parallel.pp))
        if listed is not None:
            return listed
        sizes = [(tp * pp, tokens) for (tp, pp), tokens in self.kv_capacity.items()]
        if len({gpus for gpus, _ in sizes}) < 2:
            return None
        mean_gpus, mean_tokens = (sum(column) / len(sizes) for column in zip(*sizes, strict=True))
        slope = sum((gpus - mean_gpus) * (tokens - mean_tokens) for gpus, tokens in sizes)
        slope /= sum((gpus - mean_gpus) ** 2 for gpus, _ in sizes)
        tokens = mean_tokens + slope * (parallel.gpus - mean_gpus)
        return int(tokens // BLOCK_TOKENS) * BLOCK_TOKENS if tokens >= BLOCK_TOKENS else None

    def require_stages(self, flag: str, pp: int) -> None:
        if self.layers % pp:
            raise ProfileError(f"{flag} has pp={pp}; it must divide the {self.layers} layers of {self.name!r}")

    def require_capacity(self, flag: str, parallel: Parallel) -> int:
        tokens = self.capacity(parallel)
        if tokens is None:
            raise ProfileError(
                f"{flag} is {parallel}: the weights of {self.name!r} leave no room for KV there, "
                f"by the profile's {len(self.kv_capacity)} rows of kv_capacity_tokens"
            )
        return tokens


def read_profile(path: Path, model: str) -> ModelProfile:
    """One model of a profile file. Raises ProfileError, one line, for anything wrong with what is needed of it."""
    return parse_profile(read_document(path), model)


def parse_profile(root: Node, model: str) -> ModelProfile:
    """The same from what the file holds."""
    origin = root.where
    schema = root.get("schema").value
    if schema != SCHEMA:
        raise ProfileError(f"{origin}: schema is {schema!r}; it must be {SCHEMA!r}")
    models = root.get("models")
    if model not in models.names():
        raise ProfileError(f"{origin}: has no model {model!r}; it has {', '.join(models.names()) or 'none'}")
    formulas, one = root.get("formulas"), models.get(model)
    engines = one.get("engines")
    capacity = {}
    for row in one.get("kv_capacity_tokens").items():
        tp, pp, tokens = (cell.count() for cell in row.items(THREE))
        capacity[tp, pp] = tokens
    return ModelProfile(
        model,
        one.get("layers").count(),
        {name: _coefficients(engines.get(name)) for name in engines.names()},
        capacity,
        formulas.get("threshold_B").count(),
        formulas.get("decode_batch_ctx_cap_tokens").count(),
    )


def _coefficients(node: Node) -> dict[int, Coefficients]:
    sets = {}
    for one in node.items():
        triples = (one.get(name).items(THREE) for name in ("prefill", "decode_small", "decode_large"))
        values = [tuple(cell.number() for cell in triple) for triple in triples]
        sets[one.get("tp").count()] = Coefficients(*values)  # type: ignore[arg-type]  # three of three, by items(3)
    return sets
