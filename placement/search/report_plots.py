"""The plots of a report, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import rcsetup

from placement.search.answer import Answer, Outcome
from placement.search.pareto import front
from placement.search.question import Price, Question

_PHASES = ("queue_s", "prefill_s", "transfer_s", "decode_wait_s", "decode_s")
_COLOURS = ("#CC79A7", "#0072B2", "#E69F00", "#999999", "#009E73")  # Okabe and Ito: told apart by everybody
_MOST_BARS = 20

AXES = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eee",
    "axes.axisbelow": True,
    "axes.prop_cycle": rcsetup.cycler(color=("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#555555")),
}


def plots(outcome: Outcome, question: Question) -> Iterator[tuple[str, Any]]:
    """Each with its heading; those for which there is something to show."""
    simulated = [one for one in outcome.answers if one.goodput is not None]
    if simulated:
        yield "Goodput by placement", _bars(outcome, question)
        yield "Attainment against rate", _attainment(simulated, question)
    if outcome.best is not None and outcome.best.goodput is not None and outcome.best.goodput.at_rate is not None:
        yield "Where the time goes, at that rate", _breakdown(outcome.best)
    if len(front(outcome.answers, Price.COST)) > 1:
        yield "What more money buys", _front(outcome)


def _bars(outcome: Outcome, question: Question) -> Any:
    shown = list(outcome.answers[:_MOST_BARS])[::-1]
    what = "simulated goodput" if question.rate is None else "carries the rate that was asked for"
    figure, axes = plt.subplots(figsize=(9, 1 + 0.32 * len(shown)), layout="constrained")
    places = np.arange(len(shown))
    axes.barh(places, [one.bounds.rate for one in shown], color="#e4e4e4", label="bound")
    axes.barh(places, [one.rate for one in shown], color="#0072B2", label=what)
    axes.set_yticks(places, [str(one.candidate) for one in shown], fontsize=8)
    most = max([one.rate for one in shown] + [1e-9])
    axes.set_xlim(0, min(max(one.bounds.rate for one in shown), 2.5 * most) * 1.05)
    axes.set_xlabel("requests per second")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=8, frameon=False)
    return figure


def _attainment(simulated: Sequence[Answer], question: Question) -> Any:
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for answer in list(simulated)[:5]:
        assert answer.goodput is not None
        probes = sorted(answer.goodput.probes, key=lambda one: one.rate)
        axes.errorbar(
            [one.rate for one in probes], [100 * one.share for one in probes], [100 * one.half_width for one in probes],
            marker="o", capsize=3, label=str(answer.candidate),
        )  # fmt: skip
    axes.axhline(100 * question.slo.attainment, color="#555", linestyle="--", linewidth=1)
    axes.set_xlabel("requests per second")
    axes.set_ylabel("% within both targets")
    axes.legend(fontsize=8, frameon=False)
    return figure


def _breakdown(best: Answer) -> Any:
    """Up to the first token and after it: on one scale the first could not be seen."""
    assert best.goodput is not None and best.goodput.at_rate is not None
    rows = best.goodput.at_rate.requests
    order = np.argsort(rows.e2e_s)
    figure, halves = plt.subplots(1, 2, figsize=(9, 2.6), width_ratios=(1, 2), sharey=True, layout="constrained")
    for axes, phases in zip(halves, (_PHASES[:2], _PHASES[2:]), strict=True):
        longest = 0.0
        for place, share in enumerate((0.5, 0.9, 0.99)):
            near = order[int(share * (len(order) - 1)) :][: max(1, len(order) // 100)]
            begin = 0.0
            for phase in phases:
                width = float(np.nanmean(getattr(rows, phase)[near]))
                name = phase[:-2].replace("_", " ") if place == 0 else None
                axes.barh(place, width, left=begin, color=_COLOURS[_PHASES.index(phase)], label=name)
                begin += width
            axes.text(begin, place, f"  {begin:.2f} s", va="center", fontsize=8)
            longest = max(longest, begin)
        axes.set_xlim(0, 1.25 * longest)
        axes.set_xlabel("seconds to the first token" if phases[0] == _PHASES[0] else "seconds after it")
        axes.legend(ncols=3, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    halves[0].set_yticks(range(3), ["median request", "90th percentile", "99th percentile"])
    halves[0].invert_yaxis()
    return figure


def _front(outcome: Outcome) -> Any:
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    served = [one for one in outcome.answers if one.rate > 0.0]
    axes.scatter([one.candidate.cost_per_hour for one in served], [one.rate for one in served], color="#bbb", s=18)
    best = front(outcome.answers, Price.COST)
    axes.plot([one.candidate.cost_per_hour for one in best], [one.rate for one in best], color="#0072B2", marker="o")
    for one in best:
        axes.annotate(str(one.candidate), (one.candidate.cost_per_hour, one.rate), fontsize=7, xytext=(4, -8),
                      textcoords="offset points")  # fmt: skip
    axes.set_xlabel("dollars per hour")
    axes.set_ylabel("goodput, requests per second")
    return figure
