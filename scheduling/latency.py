"""What a step, a prompt and a transfer will take: the one latency model of router, planner, simulator and mock engine.

    step time = base_s + per_prefill_token_s * prefill tokens + per_decode_sequence_s * decode sequences
              + per_context_token_s * context tokens

Context tokens of a step: over its sequences, the positions each one attends to (those computed before the step and
those computed in it). Linear in what is batched, as in DistServe (Zhong et al., OSDI 2024, appendix A) with attention's
quadratic term expressed by the context read chunk by chunk.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LatencyCoefficients:
    """Of one kind of worker, seconds; all zero means nothing is known."""

    base_s: float = 0.0
    per_prefill_token_s: float = 0.0
    per_decode_sequence_s: float = 0.0
    per_context_token_s: float = 0.0

    @property
    def known(self) -> bool:
        return self != LatencyCoefficients()


@dataclass(frozen=True, slots=True)
class TransferCoefficients:
    """Of one link."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Evaluates the coefficients; predictions are 0 where nothing is known."""

    coefficients: LatencyCoefficients
    transfer: TransferCoefficients | None = None

    def step_s(self, prefill_tokens: int, decode_sequences: int, context_tokens: int) -> float:
        """One step that computes these; 0 tokens and sequences is still a step."""
        c = self.coefficients
        return (
            c.base_s
            + c.per_prefill_token_s * prefill_tokens
            + c.per_decode_sequence_s * decode_sequences
            + c.per_context_token_s * context_tokens
        )

    def prefill_s(self, tokens: int, chunk: int, start: int = 0) -> float:
        """One prompt alone: `tokens` from position `start` (cached before it), in steps of at most `chunk` tokens."""
        assert chunk > 0 and tokens >= 0 and start >= 0
        full, rest = divmod(tokens, chunk)
        steps = full + (rest > 0)
        # context after chunk i is start + i * chunk, and after the last, shorter one start + tokens
        context = steps * start + chunk * full * (full + 1) // 2 + (tokens if rest else 0)
        c = self.coefficients
        return steps * c.base_s + tokens * c.per_prefill_token_s + context * c.per_context_token_s

    def predicted_ttft_s(self, queued_tokens: int, own_tokens: int, chunk: int, start: int = 0) -> float:
        """Token 1 of a prompt that joins a first-come queue of `queued_tokens` others, packed into full steps.

        `own_tokens` are those to compute, from position `start`.
        """
        c = self.coefficients
        total = queued_tokens + own_tokens
        joint_steps = -(-total // chunk)
        own_steps = -(-own_tokens // chunk)
        return self.prefill_s(own_tokens, chunk, start) + (
            (joint_steps - own_steps) * c.base_s + queued_tokens * (c.per_prefill_token_s + c.per_context_token_s)
        )

    def predicted_tpot_s(self, decode_sequences: int, context_tokens: int) -> float:
        """One decode step with these sequences, the asking one included."""
        return self.step_s(0, decode_sequences, context_tokens)

    def transfer_s(self, num_bytes: int) -> float:
        """One handoff's bytes over the link; 0 when the link is unknown."""
        if self.transfer is None:
            return 0.0
        return self.transfer.latency_s + num_bytes / self.transfer.bytes_per_s


# ---- profiles ----


def _numbers(where: str, given: object, names: tuple[str, ...], extra: tuple[str, ...] = ()) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected an object with {', '.join(names)}, found {type(given).__name__}")
    if unknown := sorted(set(given) - set(names) - set(extra)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}, allowed are {', '.join((*names, *extra))}")
    values = {}
    for name in names:
        value = given.get(name)
        if name not in given:
            raise ValueError(f"{where}: {name} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{where}: {name} is {value!r}, must be a finite number of at least 0")
        values[name] = float(value)
    return values


def model_from_json(given: object, where: str = "profile") -> LatencyModel:
    """The model that a profile's JSON value stands for; `transfer` may be absent or null.

    `measured` holds what `pdserve profile` found besides; the planner reads it (placement/latency/fitted_profile.py).

    Errors: ValueError that names `where`, the key, the value and what is allowed.
    """
    names = tuple(field.name for field in fields(LatencyCoefficients))
    coefficients = LatencyCoefficients(**_numbers(where, given, names, ("transfer", "measured")))
    assert isinstance(given, Mapping)
    if not isinstance(given.get("measured", {}), Mapping):
        raise ValueError(f"{where}: measured: expected an object, found {type(given['measured']).__name__}")
    link = given.get("transfer")
    if link is None:
        return LatencyModel(coefficients)
    transfer = TransferCoefficients(**_numbers(f"{where}: transfer", link, ("latency_s", "bytes_per_s")))
    if transfer.bytes_per_s == 0.0:
        raise ValueError(f"{where}: transfer: bytes_per_s is 0, must be above 0")
    return LatencyModel(coefficients, transfer)


def model_to_json(model: LatencyModel) -> dict[str, object]:
    """The profile of a model: what `model_from_json` reads."""
    transfer = None if model.transfer is None else asdict(model.transfer)
    return {**asdict(model.coefficients), "transfer": transfer}


def load_profile(path: str | os.PathLike[str]) -> LatencyModel:
    """Read a profile. Errors: OSError, or ValueError as `model_from_json`."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        given = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: not JSON: {error}") from None
    return model_from_json(given, os.fspath(path))


def save_profile(path: str | os.PathLike[str], model: LatencyModel) -> None:
    """Write a profile whole or not at all: beside it, synced, then renamed into place."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(model_to_json(model), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


# ---- measuring while serving ----

# Features are divided by these, so that the normal equations of all four are of one size.
_SCALES = (1.0, 256.0, 8.0, 4096.0)
MIN_STEPS = 5  # observed before an estimate is given
_RIDGE = 1e-6  # of the feature's own weight: ties (a worker that never prefills) go to 0, data wins everywhere else


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with partial pivoting; matrix is symmetric and positive definite (it has the ridge)."""
    n = len(right)
    rows = [[*matrix[i], right[i]] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            for k in range(i, n + 1):
                rows[r][k] -= factor * rows[i][k]
    solution = [0.0] * n
    for i in reversed(range(n)):
        known = sum(rows[i][k] * solution[k] for k in range(i + 1, n))
        solution[i] = (rows[i][n] - known) / rows[i][i]
    return solution


class OnlineLatencyEstimator:
    """Least squares that forgets, fed with every step a worker takes; about 5 microseconds a step.

    Steps weigh by 1 / seconds^2: what is fitted is the relative error, or one long prefill would drown a thousand
    decode steps. Coefficients are never negative: of the 16 subsets of features, the best one that fits so.
    """

    def __init__(self, prior: LatencyCoefficients | None = None, half_life_steps: float = 1000.0) -> None:
        assert half_life_steps > 0.0
        self._prior = prior or LatencyCoefficients()
        self._keep = 0.5 ** (1.0 / half_life_steps)
        self._matrix = [[0.0] * 4 for _ in range(4)]
        self._right = [0.0] * 4
        self.num_steps = 0

    def observe(self, prefill_tokens: int, decode_sequences: int, context_tokens: int, seconds: float) -> None:
        """One step took `seconds`; a duration that cannot be is ignored."""
        if not math.isfinite(seconds) or seconds <= 0.0:
            return
        raw = (1.0, float(prefill_tokens), float(decode_sequences), float(context_tokens))
        x = [value / scale / seconds for value, scale in zip(raw, _SCALES, strict=True)]
        for i in range(4):
            row = self._matrix[i]
            for k in range(4):
                row[k] = row[k] * self._keep + x[i] * x[k]
            self._right[i] = self._right[i] * self._keep + x[i]  # the target is seconds / seconds
        self.num_steps += 1

    def coefficients(self) -> LatencyCoefficients:
        """What fits best now; the prior until MIN_STEPS: a first step pays for cold caches, and who is thought slow
        after it would get no work to show otherwise."""
        if self.num_steps < MIN_STEPS:
            return self._prior
        best, best_gain = [0.0] * 4, -1.0
        for chosen in product((True, False), repeat=4):
            used = [i for i in range(4) if chosen[i] and self._matrix[i][i] > 0.0]
            if not used:
                continue
            matrix = [[self._matrix[i][k] * (1.0 + _RIDGE * (i == k)) for k in used] for i in used]
            fitted = _solve(matrix, [self._right[i] for i in used])
            # at the least-squares solution the squared error is constant - right * solution
            gain = sum(self._right[i] * value for i, value in zip(used, fitted, strict=True))
            if min(fitted) >= 0.0 and gain > best_gain:
                best, best_gain = [0.0] * 4, gain
                for i, value in zip(used, fitted, strict=True):
                    best[i] = value
        return LatencyCoefficients(*(value / scale for value, scale in zip(best, _SCALES, strict=True)))
