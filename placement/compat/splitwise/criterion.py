"""Splitwise's criterion: how much slower than alone on an A100 machine, at three percentiles of three times."""

from __future__ import annotations

import numpy as np

from placement.compat.requests import Floats, Requests
from placement.compat.splitwise.curves import Curve
from placement.compat.splitwise.simulate import Timings

PERCENTILES = (50, 90, 99)
LIMITS = {"ttft": (2.0, 3.0, 6.0), "tbt": (1.25, 1.5, 5.0), "e2e": (1.25, 1.5, 5.0)}


def slowdowns(timings: Timings, requests: Requests, alone: Curve) -> dict[str, Floats]:
    """P50, P90 and P99 of each time over that of the same request alone.

    Alone, both curves are taken at the prompt's tokens, and the end comes (output - 1) token times after the first.
    """
    prompt_s, token_s = (_at(alone, column, requests.prompt_tokens) for column in (alone.prompt_s, alone.token_s))
    ratios = {
        "ttft": timings.ttft_s / prompt_s,
        "tbt": timings.tbt_s / token_s,
        "e2e": timings.e2e_s / (prompt_s + token_s * (requests.output_tokens - 1)),
    }
    return {name: np.percentile(ratio, PERCENTILES) for name, ratio in ratios.items()}


def meets_all(found: dict[str, Floats]) -> bool:
    """All nine, strictly."""
    return all(bool((found[name] < limits).all()) for name, limits in LIMITS.items())


def _at(curve: Curve, column: tuple[float, ...], tokens: np.ndarray) -> Floats:
    x, y = np.array(curve.tokens), np.array(column)
    high = np.clip(np.searchsorted(x, tokens), 1, len(x) - 1)
    slope = (y[high] - y[high - 1]) / (x[high] - x[high - 1])
    return np.asarray(slope * (tokens - x[high - 1]) + y[high - 1])
