"""Which links are slow, fell back silently, or do not work: figures in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from deploy.doctor.finding import Finding, fail, ok, warn
from deploy.doctor.link_end import LinkFigure

AREA = "links"
MIN_SHARE_OF_LIMIT = {"shm": 0.4, "gloo": 0.25}
"""Of memcpy, and of TCP: `bench.transport` finds about twice these shares on a machine that is otherwise idle."""
MIN_SHARE_OF_PEERS = 0.5


def judge_links(figures: Sequence[LinkFigure]) -> list[Finding]:
    """One finding per link."""
    return [_judge(figure, figures) for figure in figures]


def _peers(figure: LinkFigure, figures: Sequence[LinkFigure]) -> list[float]:
    """The other links of the same transport."""
    return [
        other.bytes_per_second
        for other in figures
        if other is not figure and other.transport == figure.transport and not other.error
    ]


def slowness(figure: LinkFigure, figures: Sequence[LinkFigure]) -> str:
    """Why a link that works counts as slow among these; empty: it does not."""
    share = figure.bytes_per_second / figure.limit_bytes_per_second if figure.limit_bytes_per_second else None
    least = MIN_SHARE_OF_LIMIT.get(figure.transport)
    if share is not None and least is not None and share < least:
        return f"below {least:.0%} of {figure.limit}: is the machine busy, are the workers on one core?"
    peers = _peers(figure, figures)
    if peers and figure.bytes_per_second < MIN_SHARE_OF_PEERS * median(peers):
        return f"below {MIN_SHARE_OF_PEERS:.0%} of the other links' median, {median(peers) / 1e9:.2f} GB/s"
    return ""


def _judge(figure: LinkFigure, figures: Sequence[LinkFigure]) -> Finding:
    name = f"{figure.src} -> {figure.dst}"
    if figure.error:
        return fail(AREA, name, figure.error, "KV cannot take this way; docs/doctor.md says what each transport needs")
    said = _said(figure)
    if figure.transport != figure.wanted:
        hint = f"{figure.wanted} should have worked; {'; '.join(figure.refused)}"
        return warn(AREA, name, f"{said}: fell back from {figure.wanted}", hint)
    hint = slowness(figure, figures)
    return warn(AREA, name, f"{said}: slow", hint) if hint else ok(AREA, name, said)


def _said(figure: LinkFigure) -> str:
    said = f"{figure.transport}, {figure.bytes_per_second / 1e9:.2f} GB/s"
    if figure.limit_bytes_per_second:
        share = figure.bytes_per_second / figure.limit_bytes_per_second
        said += f" ({share:.0%} of {figure.limit}, {figure.limit_bytes_per_second / 1e9:.2f})"
    return f"{said}, {figure.latency_s * 1e6:,.0f} us a block"
