"""Fits step times to measured steps: relative least squares without negative terms, and cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from placement.latency.fitted import MAX_KNOTS, PiecewiseSteps, Regime
from placement.latency.fitted_points import FitError, Floats, Predicts, StepPoint, by_regime, relative_errors
from placement.simulator.cluster import LinearSteps
from scheduling.latency import LatencyCoefficients, LatencyModel, TransferCoefficients

MIN_POINTS = 4  # of a kind of step, for a curve of its own
FOLDS = 5
_TOLERANCE = 1e-10


def nonnegative_least_squares(matrix: Floats, right: Floats) -> Floats:
    """The x >= 0 that makes |matrix x - right| least.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0.0] = 1.0
    scaled, num = matrix / scale, matrix.shape[1]
    x, used = np.zeros(num), np.zeros(num, bool)
    for _ in range(3 * num):
        gradient = scaled.T @ (right - scaled @ x)
        gradient[used] = -np.inf
        if used.all() or gradient.max() <= _TOLERANCE:
            break
        used[int(gradient.argmax())] = True
        while True:
            trial = np.zeros(num)
            trial[used] = np.linalg.lstsq(scaled[:, used], right, rcond=None)[0]
            if (trial[used] > 0.0).all():
                x = trial
                break
            falls = used & (trial <= 0.0)
            step = float(np.min(x[falls] / np.maximum(x[falls] - trial[falls], 1e-300)))
            x = x + step * (trial - x)
            x[falls & (x <= _TOLERANCE)] = 0.0
            used &= x > 0.0
            if not used.any():
                break
    solution: Floats = x / scale
    return solution


def fit_linear(points: Sequence[StepPoint]) -> LatencyCoefficients:
    """The router's four coefficients."""
    columns = np.array([(1.0, p.prefill_tokens, p.decode_sequences, p.context_tokens) for p in points], float)
    return LatencyCoefficients(*map(float, _relative(columns, points)))


def fit_piecewise(points: Sequence[StepPoint]) -> PiecewiseSteps:
    """A curve for each kind of step; a kind with too few points follows the linear fit of all."""
    linear = fit_linear(points)

    def regime(name: str) -> Regime:
        own = [point for point in points if point.regime == name]
        enough = len(own) >= MIN_POINTS and len({point.rows for point in own}) >= 2
        return _fit_regime(own) if enough else Regime.linear(linear, only_decodes=name == "decode")

    return PiecewiseSteps(regime("prefill"), regime("decode"), regime("mixed"))


def fit_transfer(sizes: Sequence[tuple[int, float]]) -> TransferCoefficients | None:
    """Latency and rate from (bytes, seconds); None where more bytes took no longer."""
    columns = np.array([(1.0, size) for size, _ in sizes], float)
    seconds = np.array([took for _, took in sizes])
    if len({size for size, _ in sizes}) < 2:
        return None
    latency_s, per_byte_s = nonnegative_least_squares(columns / seconds[:, None], np.ones(len(seconds)))
    return TransferCoefficients(float(latency_s), float(1.0 / per_byte_s)) if per_byte_s > 0.0 else None


Fit = Callable[[Sequence[StepPoint]], Predicts]
FITS: Mapping[str, Fit] = {
    "linear": lambda points: LinearSteps(LatencyModel(fit_linear(points))),
    "piecewise": fit_piecewise,
}


def cross_validate(
    fit: Fit, points: Sequence[StepPoint], folds: int = FOLDS, seed: int = 0
) -> Mapping[str, FitError] | None:
    """Errors at points that the fit had not seen; None with fewer than two points a fold."""
    if len(points) < 2 * folds:
        return None
    fold_of = np.random.default_rng(seed).permutation(len(points)) % folds
    errors = np.zeros(len(points))
    for fold in range(folds):
        model = fit([point for point, own in zip(points, fold_of, strict=True) if own != fold])
        held = np.flatnonzero(fold_of == fold)
        errors[held] = relative_errors(model, [points[int(i)] for i in held])
    return by_regime(points, errors.tolist())


def _relative(columns: Floats, points: Sequence[StepPoint]) -> Floats:
    seconds = np.array([point.seconds for point in points])
    return nonnegative_least_squares(columns / seconds[:, None], np.ones(len(seconds)))


def _fit_regime(points: Sequence[StepPoint]) -> Regime:
    """Columns: a constant, the curve's rise in each piece, pairs, sequences (in mixed steps), context."""
    knots = _knots([point.rows for point in points])
    rows = np.array([point.rows for point in points], float)
    pieces = []
    for i in range(len(knots) - 1):
        low, high = knots[i], knots[i + 1]
        share = (rows - low) / (high - low)
        share = share if i == 0 else np.maximum(share, 0.0)
        pieces.append(share if i == len(knots) - 2 else np.minimum(share, 1.0))
    pairs, sequences, context = (
        np.array([getattr(point, name) for point in points], float)
        for name in ("prefill_pairs", "decode_sequences", "context_tokens")
    )
    mixed = sequences * (points[0].regime == "mixed")  # else the rows say it already
    columns = np.stack([np.ones(len(rows)), *pieces, pairs, mixed, context], axis=1)
    found = [float(one) for one in _relative(columns, points)]
    curve = np.cumsum(found[: len(knots)])
    per_pair_s, per_sequence_s, per_context_s = found[len(knots) :]
    return Regime(tuple(knots), tuple(map(float, curve)), per_pair_s, per_sequence_s, per_context_s)


def _knots(rows: Sequence[int]) -> list[float]:
    """Measured row counts, at most MAX_KNOTS, evenly out of the sorted ones."""
    distinct = sorted(set(rows))
    num = min(len(distinct), MAX_KNOTS)
    at = np.unique(np.round(np.linspace(0, len(distinct) - 1, num)).astype(int))
    return [float(distinct[i]) for i in at]
