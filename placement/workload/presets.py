"""Workloads that look like published traces, from their statistics: the traces themselves are not shipped.

azure-code, azure-conv  Azure Public Dataset, AzureLLMInferenceTrace_code.csv and _conv.csv of 2023-11-16 (8,819 and
                        19,366 requests of an hour; Patel et al., Splitwise, ISCA 2024; CC-BY-4.0)
mooncake                mooncake_synthetic_trace.jsonl (3,993 requests of 17 minutes; Qin et al., Mooncake, FAST 2025;
                        Apache-2.0)

Taken from each: quantiles of prompt and output lengths, Spearman's rank correlation of the two, the mean rate, and how
the gaps vary. What is lost: how the rate drifts over the hour, and any tie between one request's length and the next's.
"""

from __future__ import annotations

from dataclasses import dataclass

from placement.workload.arrivals import Arrivals, Gamma, GapTable
from placement.workload.lengths import Pairs, Quantiles
from placement.workload.sharing import Families, Sharing

_PERCENTS = (
    0.0, 1.0, 5.0, 10.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 97.0, 98.0, 99.0, 99.5,
    99.9, 100.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preset:
    """A kind of traffic."""

    rate: float  # requests per second, of the trace
    cv: float  # of its gaps
    lengths: Pairs
    gaps: Quantiles | None = None  # where a gamma distribution of that CV would be far from them
    sharing: Sharing | None = None

    def arrivals(self, rate: float | None = None) -> Arrivals:
        """As bursty as the trace, at its rate or another."""
        if self.gaps is not None:
            return GapTable(rate or self.rate, self.gaps)
        return Gamma(rate or self.rate, self.cv)


def _pairs(prompt: tuple[float, ...], output: tuple[float, ...], correlation: float) -> Pairs:
    return Pairs(Quantiles(_PERCENTS, prompt), Quantiles(_PERCENTS, output), correlation)


PRESETS = {
    "azure-code": Preset(
        rate=2.566,
        cv=13.15,
        lengths=_pairs(
            (3, 17, 75, 147, 386, 578, 770, 1075, 1469, 1909, 2433, 2744, 3192, 3920, 5188, 7303, 7435, 7436, 7436,
             7436, 7437, 7437),
            (6, 6, 6, 7, 8, 9, 9, 11, 13, 16, 20, 24, 29, 39, 55, 90, 128, 171, 251, 359, 825, 1899),
            -0.02,
        ),
        gaps=Quantiles(
            _PERCENTS,
            (2e-05, 6e-05, 0.00023, 0.00054, 0.00304, 0.00533, 0.00845, 0.03876, 0.16373, 0.24378, 0.25697, 0.26689,
             0.4108, 0.51028, 0.70026, 1.02855, 1.53326, 2.0499, 5.65908, 25.60834, 203.3419, 557.34132),
        ),
    ),
    "azure-conv": Preset(
        rate=5.530,
        cv=1.094,
        lengths=_pairs(
            (2, 29, 181, 207, 387, 396, 403, 703, 1020, 1071, 1130, 1189, 1315, 1876, 2734, 4083, 4090, 4098, 4142,
             4831, 6179, 14050),
            (7, 16, 41, 54, 77, 85, 91, 103, 129, 177, 384, 395, 400, 411, 424, 451, 509, 540, 601, 643, 954, 1000),
            0.08,
        ),
    ),
    "mooncake": Preset(
        rate=3.906,
        cv=1.011,
        lengths=_pairs(
            (13, 16, 22, 30, 88, 277, 913, 4365, 11587, 16290, 19409, 23175, 28425, 34319, 38611, 48905, 54833, 56631,
             66456, 76328, 120000, 191378),
            (1, 2, 2, 4, 8, 11, 16, 32, 69, 126, 210, 250, 289, 332, 389, 519, 609, 689, 768, 782, 813, 893),
            -0.53,
        ),
        sharing=Families(reuse=0.79, depth=0.97),
    ),
}  # fmt: skip
