"""A report in one file: HTML with its pictures inside, or the pictures below one another as PNG."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from matplotlib import image as pictures
from matplotlib.figure import Figure

from bench.load.plots import SIZE, as_png, attainment_against_rate, latency_against_rate, timeline
from bench.load.session import Run
from bench.load.summary import Objective

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1150px;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{background:#f5f5f5;padding:1rem;overflow:auto;font-size:13px}"
    "div{overflow-x:auto}img{width:100%;min-width:44rem}"  # smaller, its words cannot be read
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#242424}img{background:#fff}}"
)


def write_report(
    path: Path, title: str, text: str, runs: dict[str, Sequence[Run]], objective: Objective, target: float | None
) -> None:
    """By the path's ending, .png or .html; raises OSError."""
    several = any(len({run.rate for run in its}) > 1 for its in runs.values())
    figures = [latency_against_rate(runs, objective), attainment_against_rate(runs, target)] if several else []
    figures += [timeline(its[-1], objective, name) for name, its in runs.items() if its and its[-1].results]
    if not figures:  # interrupted before anything had ended
        figures = [Figure(figsize=SIZE)]
        figures[0].text(0.5, 0.5, "nothing was measured", ha="center")
    if path.suffix == ".png":
        _stacked(figures, path)
        return
    shown = "".join(
        f'<div><img alt="plot" src="data:image/png;base64,{base64.b64encode(as_png(figure)).decode()}"></div>'
        for figure in figures
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>{shown}<pre>{escape(text)}</pre></html>"
    )
    path.write_text(page, encoding="utf-8")


def _stacked(figures: Sequence[Figure], path: Path) -> None:
    images = [pictures.imread(BytesIO(as_png(figure)), format="png") for figure in figures]
    height, width = sum(one.shape[0] for one in images), max(one.shape[1] for one in images)
    whole = Figure(figsize=(width / 110, height / 110), dpi=110)
    top = height
    for one in images:
        top -= one.shape[0]
        whole.figimage(one, 0, top)
    whole.savefig(path, format="png", dpi=110)
