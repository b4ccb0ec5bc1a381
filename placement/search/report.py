"""The report for people: one HTML page with its plots inside, or one picture of the plots."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from placement.search.answer import Answer, Outcome
from placement.search.question import Question
from placement.search.report_plots import AXES, plots
from placement.search.whatif import Consequence

_MOST_ROWS = 200

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; } td.n, th.n { text-align: right; }
.wide { overflow-x: auto; } img { width: 100%; min-width: 38rem; } .lead { font-size: 1.2rem; } .note { color: #555; }
"""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a report says beside its numbers."""

    title: str
    answer: str  # the lines that answer the question
    basis: str  # where step times come from
    unit: str  # what is counted: GPU, machine or worker


def write_report(
    path: Path, outcome: Outcome, question: Question, what_if: Sequence[Consequence], wording: Wording
) -> None:
    """The page, or with a name that ends in .png the plots alone. Errors: OSError."""
    if path.suffix.lower() == ".png":
        path.write_bytes(png_report(outcome, question, wording))
    else:
        path.write_text(html_report(outcome, question, what_if, wording), encoding="utf-8")


def png_report(outcome: Outcome, question: Question, wording: Wording) -> bytes:
    """All plots, one below the other, under the answer."""
    plt.rcParams.update(AXES)
    parts = [_words(wording)]
    for heading, figure in plots(outcome, question):
        figure.suptitle(heading, x=0.0, y=1.0 + 0.35 / figure.get_figheight(), ha="left", va="bottom", fontsize=12)
        parts.append(figure)
    images = [plt.imread(io.BytesIO(_png(one)))[:, :, :3] for one in parts]
    width = max(image.shape[1] for image in images)
    wide = [np.pad(image, ((20, 0), (0, width - image.shape[1]), (0, 0)), constant_values=1.0) for image in images]
    buffer = io.BytesIO()
    plt.imsave(buffer, np.clip(np.pad(np.vstack(wide), ((0, 20), (20, 20), (0, 0)), constant_values=1.0), 0.0, 1.0))
    return buffer.getvalue()


def _words(wording: Wording) -> Any:
    answer = [line for text in wording.answer.splitlines() for line in textwrap.wrap(text, 110)]
    lines = [*answer, "", *textwrap.wrap(wording.basis, 110)]
    figure = plt.figure(figsize=(9, 0.5 + 0.21 * len(lines)))
    figure.text(0.0, 1.0, wording.title, fontsize=14, va="top")
    figure.text(0.0, 1.0 - 0.4 / figure.get_figheight(), "\n".join(lines), fontsize=9, va="top", linespacing=1.5)
    return figure


def html_report(outcome: Outcome, question: Question, what_if: Sequence[Consequence], wording: Wording) -> str:
    """The page."""
    plt.rcParams.update(AXES)
    title = html.escape(wording.title)
    lead = "<br>".join(html.escape(line) for line in wording.answer.splitlines())
    parts = [f"<h1>{title}</h1>", f'<p class="lead">{lead}</p>']
    if not outcome.complete:
        parts.append('<p class="note">The search was interrupted: this is the best that was known by then.</p>')
    if outcome.best is not None:
        parts.append(_facts(outcome.best, question, wording.unit))
    parts.append(f'<p class="note">{html.escape(wording.basis)}</p>')
    for heading, figure in plots(outcome, question):
        parts += [f"<h2>{heading}</h2>", _image(figure, heading)]
    if what_if:
        changes = [(one.change.name, f"{one.rate:.3g}", one.binding) for one in what_if]
        parts += ["<h2>What if</h2>", _table(("change", "goodput, requests/s", "what binds"), changes)]
    rows = [
        (str(one.candidate), f"{one.candidate.gpus}", _goodput(one),
         f"{one.bounds.rate:.3g}", one.reason)
        for one in outcome.answers[:_MOST_ROWS]
    ]  # fmt: skip
    heads = (
        "placement",
        f"{wording.unit}s",
        "goodput, requests/s",
        "bound, requests/s",
        "what binds, or why not simulated",
    )
    num = len(outcome.answers)
    shown = "Every placement" if len(rows) == num else f"The best {len(rows)} of {num}"
    parts += [f"<h2>{shown}</h2>", _table(heads, rows)]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _goodput(answer: Answer) -> str:
    if answer.goodput is None:
        return "-"
    return f"{answer.rate:.3g}" if answer.rate > 0.0 else f"under {answer.ceiling:.3g}"


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


def _facts(best: Answer, question: Question, unit: str) -> str:
    """What is predicted of the answer, as a table."""
    candidate, goodput = best.candidate, best.goodput
    assert goodput is not None
    most = goodput.rate if goodput.most is None else goodput.most
    rows = [
        (f"{unit}s", f"{candidate.gpus}"),
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
        pools = [] if candidate.prefill is None else [("prefill workers", used.prefill, used.prefill_memory)]
        last = "workers" if candidate.prefill is None else "decode workers"
        for name, busy, memory in (*pools, (last, used.decode, used.decode_memory)):
            rows.append((name, f"in steps {busy:.0%} of the time, KV memory {memory:.0%} full at the peak"))
        if candidate.prefill is not None:
            rows.append(("links between the pools", f"{used.link:.1%} of their bytes per second"))
    return _table(("the answer", ""), rows)
