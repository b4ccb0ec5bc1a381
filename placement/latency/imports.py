"""Step times that others measured: DistServe's coefficients and Splitwise's tables, for our own simulators.

Both formats are those of the compatible modes (docs/compat-simulators.md); what differs is whose rules run on them.
Neither says what a mixed step of chunked prefill takes under DistServe's coefficients: here, a prefill of its prompt
tokens with the context and sequence terms of its decodes added. A pipeline's lane takes the whole model's time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.compat.distserve import ModelProfile, read_profile
from placement.compat.distserve.profile import SCHEMA as DISTSERVE
from placement.compat.errors import ProfileError
from placement.compat.splitwise import read_curve
from placement.compat.splitwise.measurements import SCHEMA as SPLITWISE
from placement.latency.fitted import PiecewiseSteps, Regime
from placement.latency.fitted_points import Reach

MIXED_PENALTY = 1.1  # Splitwise's, of a step of prompts and decodes
_MS = 1e-3
_OVERHEAD_MS, _OVERHEAD_PER_TOKEN_MS, _STAGE_MS = 2.0, 1e-4, 1.0  # DistServe's, of the first stage and of each


@dataclass(frozen=True, slots=True)
class Foreign:
    """Step times of one model in such a file, by GPU type's name, tp and pp; plain data, for search processes."""

    path: Path
    model: str
    schema: str

    def __call__(self, gpu: str, tp: int, pp: int) -> PiecewiseSteps:
        """Errors: ProfileError, one line, where the file has no such times."""
        if self.schema == DISTSERVE:
            return distserve_steps(read_profile(self.path, self.model), tp, pp)
        return splitwise_steps(self.path, self.model, gpu, tp, pp)

    def reach(self, gpu: str, tp: int, pp: int) -> Reach | None:
        """As far as a table goes, whose times do not depend on the context; None for coefficients.

        Errors: ProfileError, one line, where the file has no such times.
        """
        if self.schema == DISTSERVE:
            return None
        steps = self(gpu, tp, pp)
        return Reach(steps.prefill.rows[-1], steps.decode.rows[-1], math.inf)


def foreign_steps(path: Path, model: str) -> Foreign | None:
    """None where the file is of neither kind. Errors: OSError; ValueError for what is no JSON object."""
    schema = _document(path).get("schema")
    return Foreign(path, model, str(schema)) if schema in (DISTSERVE, SPLITWISE) else None


def distserve_steps(profile: ModelProfile, tp: int, pp: int, engine: str = "distserve") -> PiecewiseSteps:
    """A prompt of n tokens adds n^2 there; a chunk of it end^2 - start^2, which is 2 pairs - n.

    Errors: ProfileError where the profile lacks tp.
    """
    found = profile.coefficients(engine, tp)
    p0, p1, p2 = found.prefill
    base = p0 + _STAGE_MS * pp * pp + _OVERHEAD_MS
    per_token = p1 - p2 + _OVERHEAD_PER_TOKEN_MS
    rows = (0.0, 1.0)
    curve = (base * _MS, (base + per_token) * _MS)

    def decode(constant: float, per_context: float, per_sequence: float) -> Regime:
        both = (constant + _OVERHEAD_MS) * _MS
        sequence_s = (per_sequence - _OVERHEAD_PER_TOKEN_MS) * _MS  # context counts the token that is computed
        return Regime(rows, (both, both), 0.0, sequence_s, (per_context + _OVERHEAD_PER_TOKEN_MS) * _MS)

    small, large = decode(*found.decode_small), decode(*found.decode_large)
    prefill = Regime(rows, curve, per_pair_s=2.0 * p2 * _MS)
    mixed = Regime(
        rows, curve, 2.0 * p2 * _MS, small.per_sequence_s - per_token * _MS, small.per_context_s,
    )  # fmt: skip
    return PiecewiseSteps(prefill, small, mixed, large, float(profile.threshold))


def splitwise_steps(path: Path, model: str, gpu: str, tp: int, pp: int) -> PiecewiseSteps:
    """Errors: ProfileError for a pipeline, or where the file lacks the GPU or tp."""
    if pp != 1:
        raise ProfileError(f"{path}: has no pipelines; pp is {pp}, must be 1")
    curve = read_curve(path, _listed(path, "model", model), _listed(path, "gpu", gpu), tp)
    prompt, token = _curve(curve.tokens, curve.prompt_s), _curve(curve.tokens, curve.token_s)
    mixed = Regime(prompt.rows, prompt.seconds, rows_scale=MIXED_PENALTY)
    return PiecewiseSteps(prompt, token, mixed)


def _curve(tokens: tuple[float, ...], seconds: tuple[float, ...]) -> Regime:
    """Without last points that fall: measurements that ran out of memory, and beyond them time would fall for ever."""
    num = len(tokens)
    while num > 2 and seconds[num - 1] < seconds[num - 2]:
        num -= 1
    return Regime(tokens[:num], seconds[:num])


def _listed(path: Path, key: str, name: str) -> str:
    """As the file writes it: `h100` of our catalogue is `h100-80gb` there, `llama-2-70b` is `llama2-70b`."""
    known = {str(one.get(key)) for one in _document(path).get("curves", ()) if isinstance(one, Mapping)}
    plain = {other.replace("-", "").removesuffix("80gb"): other for other in sorted(known)}
    return name if name in known else plain.get(name.replace("-", ""), name)


def _document(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: not JSON: {error}") from None
    if not isinstance(given, Mapping):
        raise ValueError(f"{os.fspath(path)}: expected an object, found {type(given).__name__}")
    return given
