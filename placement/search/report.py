"""The report for people: one HTML page with its plots inside, or one picture of the plots."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import rcsetup

from placement.search.pareto import front
from placement.search.search import Answer, Outcome, Price, Question
from placement.search.whatif import Consequence

_PHASES = ("queue_s", "prefill_s", "transfer_s", "decode_wait_s", "decode_s")
_COLOURS = ("#CC79A7", "#0072B2", "#E69F00", "#999999", "#009E73")  # Okabe and Ito: told apart by everybody
_MOST_BARS, _MOST_ROWS = 20, 200

_AXES = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eee",
    "axes.axisbelow": True,
    "axes.prop_cycle": rcsetup.cycler(color=("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#555555")),
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; } td.n, th.n { text-align: right; }
.wide { overflow-x: auto; } img { width: 100%; min-width: 38rem; } .lead { font-size: 1.2rem; } .note { color: #555; }
"""


def write_report(
    path: Path,
    outcome: Outcome,
    question: Question,
    what_if: Sequence[Consequence],
    title: str,
    answer: str,
    basis: str,
) -> None:
    """The page, or with a name that ends in .png the plots in one picture. Errors: OSError."""
    if path.suffix.lower() == ".png":
        path.write_bytes(png_report(outcome, question, title, answer, basis))
    else:
        path.write_text(html_report(outcome, question, what_if, title, answer, basis), encoding="utf-8")


def png_report(outcome: Outcome, question: Question, title: str, answer: str, basis: str) -> bytes:
    """All plots, one below the other, under the answer."""
    plt.rcParams.update(_AXES)
    parts = [_words(title, answer, basis)]
    for heading, figure in _plots(outcome, question):
        figure.suptitle(heading, x=0.0, y=1.0 + 0.35 / figure.get_figheight(), ha="left", va="bottom", fontsize=12)
        parts.append(figure)
    images = [plt.imread(io.BytesIO(_png(one)))[:, :, :3] for one in parts]
    width = max(image.shape[1] for image in images)
    wide = [np.pad(image, ((20, 0), (0, width - image.shape[1]), (0, 0)), constant_values=1.0) for image in images]
    buffer = io.BytesIO()
    plt.imsave(buffer, np.clip(np.pad(np.vstack(wide), ((0, 20), (20, 20), (0, 0)), constant_values=1.0), 0.0, 1.0))
    return buffer.getvalue()


def _words(title: str, answer: str, basis: str) -> Any:
    lines = [line for text in answer.splitlines() for line in textwrap.wrap(text, 110)] + [
        "",
        *textwrap.wrap(basis, 110),
    ]
    figure = plt.figure(figsize=(9, 0.5 + 0.21 * len(lines)))
    figure.text(0.0, 1.0, title, fontsize=14, va="top")
    figure.text(0.0, 1.0 - 0.4 / figure.get_figheight(), "\n".join(lines), fontsize=9, va="top", linespacing=1.5)
    return figure


def _plots(outcome: Outcome, question: Question) -> Iterator[tuple[str, Any]]:
    """Each with its heading; those for which there is something to show."""
    simulated = [one for one in outcome.answers if one.goodput is not None]
    if simulated:
        yield "Goodput by placement", _bars(outcome, question)
        yield "Attainment against rate", _attainment(simulated, question)
    if outcome.best is not None and outcome.best.goodput is not None and outcome.best.goodput.at_rate is not None:
        yield "Where the time goes, at that rate", _breakdown(outcome.best)
    if len(front(outcome.answers, Price.COST)) > 1:
        yield "What more money buys", _front(outcome)


def html_report(
    outcome: Outcome, question: Question, what_if: Sequence[Consequence], title: str, answer: str, basis: str
) -> str:
    """The page. `answer` is the sentence that answers the question, `basis` says where step times come from."""
    plt.rcParams.update(_AXES)
    lead = "<br>".join(html.escape(line) for line in answer.splitlines())
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{lead}</p>']
    if not outcome.complete:
        parts.append('<p class="note">The search was interrupted: this is the best that was known by then.</p>')
    if outcome.best is not None:
        parts.append(_facts(outcome.best, question))
    parts.append(f'<p class="note">{html.escape(basis)}</p>')
    for heading, figure in _plots(outcome, question):
        parts += [f"<h2>{heading}</h2>", _image(figure, heading)]
    if what_if:
        changes = [(one.change.name, f"{one.rate:.3g}", one.binding) for one in what_if]
        parts += ["<h2>What if</h2>", _table(("change", "goodput, requests/s", "what binds"), changes)]
    rows = [
        (str(one.candidate), f"{one.candidate.gpus}", f"{one.rate:.3g}" if one.goodput else "-",
         f"{one.bounds.rate:.3g}", one.reason)
        for one in outcome.answers[:_MOST_ROWS]
    ]  # fmt: skip
    heads = ("placement", "GPUs", "goodput, requests/s", "bound, requests/s", "what binds, or why not simulated")
    num = len(outcome.answers)
    shown = "Every placement" if len(rows) == num else f"The best {len(rows)} of {num}"
    parts += [f"<h2>{shown}</h2>", _table(heads, rows)]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _image(figure: Any, alt: str) -> str:
    data = base64.b64encode(_png(figure)).decode()
    return f'<div class="wide"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


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


def _facts(best: Answer, question: Question) -> str:
    """What is predicted of the answer, as a table."""
    candidate, goodput = best.candidate, best.goodput
    assert goodput is not None
    most = goodput.rate if goodput.most is None else goodput.most
    rows = [
        ("GPUs", f"{candidate.gpus}"),
        ("dollars per hour", f"{candidate.cost_per_hour:,.2f}" if candidate.cost_per_hour else "not known"),
        ("watts", f"{candidate.power_w:,.0f}" if candidate.power_w else "not known"),
        ("goodput, requests/s (95 % confidence)", f"{most:.3g} ({goodput.low:.3g} to {goodput.high:.3g})"),
        ("what binds", best.reason),
    ]
    if goodput.at_rate is not None:
        columns, slo = goodput.at_rate.requests, question.slo
        for name, times, target in (("TTFT", columns.ttft_s, slo.ttft_s), ("TPOT", columns.tpot_s, slo.tpot_s)):
            p50, p90, p99 = np.nanpercentile(times, (50, 90, 99))
            rows.append(
                (f"{name} at that rate", f"p50 {p50:.3g} s, p90 {p90:.3g} s, p99 {p99:.3g} s; target {target:g} s")
            )
    if best.used is not None:
        used = best.used
        pools = [] if candidate.prefill is None else [("prefill", used.prefill, used.prefill_memory)]
        for name, busy, memory in (*pools, ("decode", used.decode, used.decode_memory)):
            rows.append(
                (f"{name} workers", f"in steps {busy:.0%} of the time, KV memory {memory:.0%} full at the peak")
            )
        if candidate.prefill is not None:
            rows.append(("links between the pools", f"{used.link:.1%} of their bytes per second"))
    return _table(("the answer", ""), rows)


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
