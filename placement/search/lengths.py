"""What the bounds need of a workload."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.workload.workload import Floats, Workload


@dataclass(frozen=True, slots=True)
class LengthStats:
    """Means per request. `computed`: prompt tokens that a prefix cache without limit would still have to compute."""

    output_mean: float
    context_mean: float  # of a decoding sequence, over its steps
    computed_mean: float
    pairs_mean: float  # query-key pairs of the computed tokens
    sent_mean: float  # prompt tokens whose KV goes from one worker to another
    computed_at: float  # the quantile of computed tokens that the attainment asks to serve in time

    @classmethod
    def of(
        cls, workload: Workload, attainment: float, *, prefix_caching: bool = False, local_tokens: int = 0
    ) -> LengthStats:
        """With `local_tokens`, prompts of which no more is computed count as nothing where they would be prefill's."""
        prompt, output = workload.prompt_tokens.astype(float), workload.output_tokens.astype(float)
        weight = np.maximum(output - 1, 1e-9)
        computed = _uncached(workload) if prefix_caching and workload.prefixes is not None else prompt
        away = computed > local_tokens
        pairs = (prompt**2 - (prompt - computed) ** 2) / 2
        return cls(
            output_mean=float(output.mean()),
            context_mean=float(np.sum(weight * (prompt + output / 2)) / np.sum(weight)),
            computed_mean=float((computed * away).mean()),
            pairs_mean=float((pairs * away).mean()),
            sent_mean=float((computed * away * (output > 1)).mean()),
            computed_at=float(np.quantile(computed, attainment, method="lower")),
        )


def _uncached(workload: Workload) -> Floats:
    """Prompt tokens that no earlier request had in the same place; at least one is computed."""
    prefixes = workload.prefixes
    assert prefixes is not None
    seen: set[int] = set()
    cached = np.zeros(len(workload))
    for index in range(len(workload)):
        ids = prefixes.of(index).tolist()
        known = next((place for place, one in enumerate(ids) if one not in seen), len(ids))
        cached[index] = known * prefixes.block_tokens
        seen.update(ids)
    return np.maximum(workload.prompt_tokens - cached, 1.0)
