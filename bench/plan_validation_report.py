"""Predicted beside measured, for people and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.plan_validation_figures import LATENCIES, Figures, Pair, Targets, measured, predicted
from bench.plan_validation_runs import Run
from bench.plan_validation_twin import Placement
from bench.split_against_colocated import falls_through
from placement.simulator.results import RequestColumns

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
Cells = Mapping[tuple[Placement, float], Sequence[tuple[Figures, Figures]]]
"""By placement and rate: (predicted, measured) of every round."""
Told = Sequence[tuple[Run, RequestColumns]]
"""Runs, and what was predicted of them."""


def cells_of(told: Told, targets: Targets) -> Cells:
    found: dict[tuple[Placement, float], list[tuple[Figures, Figures]]] = {}
    for run, columns in told:
        pair = predicted(run.sent, columns, targets), measured(run.sent, targets)
        found.setdefault((run.placement, run.rate), []).append(pair)
    return found


def report(cells: Cells, targets: Targets) -> tuple[list[str], list[dict[str, Any]]]:
    """The table and the same as data."""
    names = [name.removesuffix("_s").replace("_", " ").upper() for name in LATENCIES]
    lines = [f"{'predicted / measured (error)':<22}" + "".join(f"{name:>26}" for name in names) + f"{'attainment':>24}"]
    rows = []
    for (placement, rate), rounds in _sorted(cells):
        pair = Pair.of(rounds)
        cell = [
            f"{1e3 * getattr(pair.predicted, name):.1f}/{1e3 * getattr(pair.measured, name):.1f} ms "
            f"({100 * pair.error(name):+.1f} %)"
            for name in LATENCIES
        ]
        lines.append(
            f"{placement!s:<12} {rate:5.1f}/s  " + "".join(f"{one:>26}" for one in cell)
            + f"{f'{_shares(pair)} % ({pair.attainment_points:+.1f})':>24}"
        )  # fmt: skip
        rows.append({"placement": str(placement), "rate": rate, "predicted": asdict(pair.predicted),
                     "measured": asdict(pair.measured), "rounds": len(rounds)})  # fmt: skip
    for placement in dict.fromkeys(placement for placement, _ in cells):
        told, seen = (goodput(cells, placement, side, targets.attainment) for side in ("predicted", "measured"))
        lines.append(f"{placement!s:<12} goodput: predicted {told}, measured {seen} requests/s")
    return lines, rows


def by_scale(told: Told, targets: Targets) -> list[str]:
    """Attainment where both targets are laxer or tighter: at one pair the curve may be flat, or steep."""
    lines = ["attainment, %, predicted/measured, at so many times both targets"]
    lines.append(f"{'':<22}" + "".join(f"{f'x {scale:g}':>16}" for scale in SCALES))
    tables = [cells_of(told, targets.scaled(scale)) for scale in SCALES]
    for place, _ in _sorted(tables[0]):
        shares = (_shares(Pair.of(table[place])) for table in tables)
        lines.append(f"{place[0]!s:<12} {place[1]:5.1f}/s  " + "".join(f"{one:>16}" for one in shares))
    off = [abs(Pair.of(rounds).attainment_points) for table in tables for rounds in table.values()]
    lines.append(
        f"mean error {sum(off) / len(off):.1f} points, {sum(one <= 3.0 for one in off)} of {len(off)} within 3"
    )
    return lines


def goodput(cells: Cells, placement: Placement, side: str, wanted: float) -> str:
    """Where attainment falls through the wanted share, as a number or as a bound by the rates tried."""
    rates = sorted(rate for one, rate in cells if one == placement)
    shares = [getattr(Pair.of(cells[placement, rate]), side).attainment for rate in rates]
    found = falls_through(rates, shares, wanted)
    return f"above {rates[-1]:g}" if found is None else f"below {rates[0]:g}" if found == 0 else f"{found:.2f}"


def _sorted(cells: Cells) -> list[tuple[tuple[Placement, float], Sequence[tuple[Figures, Figures]]]]:
    return sorted(cells.items(), key=lambda one: (str(one[0][0]), one[0][1]))


def _shares(pair: Pair) -> str:
    return f"{100 * pair.predicted.attainment:.1f}/{100 * pair.measured.attainment:.1f}"
