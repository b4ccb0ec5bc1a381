"""What the rounds say together: medians, and ours beside theirs with the gate that it should pass."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.served.load import Load, Outcome


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of an outcome."""

    name: str
    of: Callable[[Outcome], float]
    more_is_better: bool = False

    def ratio(self, ours: Outcome, theirs: Outcome) -> float:
        """How many times better ours is; nan where either has no number."""
        above, below = (ours, theirs) if self.more_is_better else (theirs, ours)
        return self.of(above) / self.of(below) if self.of(below) else float("nan")


REQUESTS = Figure("requests/s", lambda outcome: outcome.requests_per_s, more_is_better=True)
TTFT, TPOT = (
    Figure("TTFT p50", lambda outcome: outcome.ttft_s.p50),
    Figure("TPOT p50", lambda outcome: outcome.tpot_s.p50),
)
MEAN_TTFT = Figure("TTFT mean", lambda outcome: outcome.ttft_s.mean)  # in a closed loop p50 alone hides the first wave
FIGURES = (
    REQUESTS,
    TTFT,
    MEAN_TTFT,
    Figure("TTFT p99", lambda outcome: outcome.ttft_s.p99),
    TPOT,
    Figure("TPOT p99", lambda outcome: outcome.tpot_s.p99),
)


@dataclass(frozen=True, slots=True)
class Gate:
    """How many times better than theirs ours has to be."""

    ours: str
    theirs: str
    requests: float
    ttft: float
    tpot: float

    def of(self, figure: Figure) -> float | None:
        """None for a figure that is shown only."""
        return {REQUESTS: self.requests, TTFT: self.ttft, MEAN_TTFT: self.ttft, TPOT: self.tpot}.get(figure)


GATES = (
    Gate("pdserve-split", "vllm-split", 2.0, 2.0, 2.0),
    Gate("pdserve-split", "vllm-split-repaired", 1.5, 1.5, 1.2),
    Gate("pdserve-colocated", "vllm-colocated", 1.0, 1.0, 1.0),
    Gate("pdserve-replicas", "vllm-colocated", 1.0, 1.0, 1.0),
)

Rounds = Mapping[tuple[str, Load], Sequence[Outcome]]  # (system, load) -> one outcome a round


def outcome_lines(system: str, load: Load, outcome: Outcome) -> list[str]:
    """One round of one system."""
    lines = [
        f"{system:<20} {load!s:<16} {outcome.requests_per_s:6.2f} req/s {outcome.tokens_per_s:6.0f} tok/s"
        f"  TTFT {_ms(outcome, 'ttft_s')}  TPOT {_ms(outcome, 'tpot_s')} ms  errors {outcome.errors.total()}",
        "    cores: "
        + ", ".join(f"{name} {cores:.2f}" for name, cores in outcome.cores.items() if cores >= 0.005)
        + f" | client {outcome.client_cores:.2f}, others on this machine {outcome.other_cores:.2f}",
    ]
    if outcome.cached_tokens:
        lines.append(f"    {outcome.cached_tokens} prompt tokens came from a prefix cache: not the same work")
    return lines + [f"    {number} x {message[:200]!r}" for message, number in outcome.errors.most_common(3)]


def _ms(outcome: Outcome, name: str) -> str:
    spread = getattr(outcome, name)
    return "/".join(f"{1e3 * value:.1f}" for value in (spread.mean, spread.p50, spread.p90, spread.p99))


def median_lines(rounds: Rounds) -> list[str]:
    """Every system's medians over its rounds."""
    lines = ["medians over rounds (ms):"]
    for (system, load), outcomes in rounds.items():
        middle = [statistics.median(figure.of(outcome) for outcome in outcomes) for figure in FIGURES]
        shown = "  ".join(
            f"{figure.name} {value * (1 if figure is REQUESTS else 1e3):.{2 if figure is REQUESTS else 1}f}"
            for figure, value in zip(FIGURES, middle, strict=True)
        )
        errors = sum(outcome.errors.total() for outcome in outcomes)
        lines.append(f"  {system:<20} {load!s:<16} {shown}  errors {errors}")
    return lines


def ratio_lines(rounds: Rounds) -> list[str]:
    """Ours over theirs, round by round (both see the same other load), each beside its gate."""
    lines = []
    for gate in GATES:
        for load in dict.fromkeys(load for system, load in rounds if system == gate.ours):
            ours, theirs = rounds[gate.ours, load], rounds.get((gate.theirs, load), ())
            if theirs:
                lines.append(f"{gate.ours} against {gate.theirs}, {load}: times better, median (least..most)")
                lines += [_ratio_line(figure, gate.of(figure), ours, theirs) for figure in FIGURES]
    return lines or ["no system of ours has its opponent here: nothing to compare"]


def _ratio_line(figure: Figure, gate: float | None, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> str:
    ratios = [figure.ratio(one, other) for one, other in zip(ours, theirs, strict=False)]
    median = statistics.median(ratios)
    line = f"  {figure.name:<12} {median:6.2f}  ({min(ratios):.2f}..{max(ratios):.2f})"
    if gate is None:
        return line
    return f"{line:<34} gate {gate:.1f}: {'met' if median >= gate else 'MISSED'}"


def agreement_lines(tokens: Mapping[str, Sequence[tuple[int, ...]]], reference: str) -> list[str]:
    """How far every system's greedy tokens agree with the reference's."""
    lines = []
    for system, answers in tokens.items():
        if system != reference:
            pairs = list(zip(answers, tokens[reference], strict=True))
            equal = sum(one == other and bool(one) for one, other in pairs)
            shared = sum(_shared_prefix(one, other) for one, other in pairs)
            total = sum(len(other) for _, other in pairs)
            lines.append(
                f"greedy tokens of {system} and {reference}: {equal} of {len(pairs)} answers equal, "
                f"{shared} of {total} tokens before the first difference"
            )
    return lines


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
