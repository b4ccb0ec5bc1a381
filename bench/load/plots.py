"""Results as pictures: latency and attainment against rate, and the run over time."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.load.result import Outcome
from bench.load.session import Run
from bench.load.summary import Objective

SIZE = (11.0, 3.6)
DOT = 5.0


def latency_against_rate(runs: dict[str, Sequence[Run]], objective: Objective) -> Figure:
    """TTFT and TPOT percentiles of each system over its rates."""
    figure = Figure(figsize=SIZE, layout="constrained")
    wanted = (("TTFT", "ttft_s", objective.ttft_s), ("TPOT", "tpot_s", objective.tpot_s))
    for axes, (label, name, limit) in zip(figure.subplots(1, 2), wanted, strict=True):
        for number, (system, its) in enumerate(runs.items()):
            ordered = sorted(its, key=lambda run: run.rate)
            rates = [run.rate for run in ordered]
            for percentile, style in (("p50", "-"), ("p90", "--"), ("p99", ":")):
                values = [1e3 * getattr(getattr(run.summary, name), percentile) for run in ordered]
                axes.plot(rates, values, f"{style}o", color=f"C{number}", markersize=3, label=f"{system} {percentile}")
        if limit is not None:
            axes.axhline(1e3 * limit, color="0.3", linewidth=1, label="SLO")
        axes.set(xlabel="requests per second", ylabel=f"{label}, ms", yscale="log", title=f"{label} against rate")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=7)
    return figure


def attainment_against_rate(runs: dict[str, Sequence[Run]], target: float | None) -> Figure:
    """The share that met both, with its 95 % limits."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for number, (system, its) in enumerate(runs.items()):
        ordered = sorted(its, key=lambda run: run.rate)
        rates = [run.rate for run in ordered]
        found = [run.summary for run in ordered]
        axes.plot(rates, [100 * one.attainment for one in found], "-o", color=f"C{number}", label=system)
        low, high = ([100 * getattr(one.attainment_limits, end) for one in found] for end in ("low", "high"))
        axes.fill_between(rates, low, high, color=f"C{number}", alpha=0.15)
    if target is not None:
        axes.axhline(100 * target, color="0.3", linewidth=1, label=f"{target:.0%}")
    axes.set(xlabel="requests per second", ylabel="% of requests", ylim=(-3, 103), title="SLO attainment against rate")
    axes.legend(fontsize=8)
    return figure


def curves(panels: dict[str, dict[str, list[tuple[float, float]]]], wanted: float) -> Figure:
    """Attainment of each system over rates, one panel for each target."""
    figure = Figure(figsize=(3.2 * len(panels), 3.4), layout="constrained")
    for axes, (title, systems) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for system, points in systems.items():
            axes.plot([rate for rate, _ in points], [share for _, share in points], "-o", markersize=3, label=system)
        axes.axhline(wanted, color="0.3", linewidth=1)
        axes.set(xlabel="requests per second", ylabel="% met", ylim=(-3, 103), title=title)
    axes.legend(fontsize=7)
    return figure


def timeline(run: Run, objective: Objective, system: str) -> Figure:
    """Each request's TTFT and TPOT at the time it was to be sent; what failed at the bottom."""
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(f"{system}, {run.rate:.4g} requests/s", fontsize=10)
    first, second = figure.subplots(1, 2)
    began = [one for one in run.results if one.ttft_s is not None]
    _scatter(first, [(one.intended_s, one.ttft_s or 0.0) for one in began], "TTFT", objective.ttft_s)
    several = [(one.intended_s, one.tpot_s) for one in began if one.num_tokens > 1]
    _scatter(second, several, "TPOT", objective.tpot_s)
    lost = [one.intended_s for one in run.results if one.outcome not in (Outcome.OK, Outcome.INTERRUPTED)]
    if lost:
        first.plot(lost, [0.0] * len(lost), "rx", markersize=4, label="not answered whole")
    for axes in (first, second):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return figure


def _scatter(axes: Any, points: list[tuple[float, float]], label: str, limit: float | None) -> None:
    axes.scatter([at for at, _ in points], [1e3 * value for _, value in points], s=DOT)
    if limit is not None:
        axes.axhline(1e3 * limit, color="0.3", linewidth=1, label="SLO")
    axes.set(xlabel="seconds", ylabel=f"{label}, ms", title=f"{label} over time")
    axes.set_ylim(bottom=0)


def as_png(figure: Figure, path: Path | None = None) -> bytes:
    """The picture, also written where a path is given."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()
