"""What was measured, and how it stands to the peers and to the gates."""

from __future__ import annotations

from dataclasses import dataclass

GATES = {
    "shared memory": ("memcpy", 0.60, 0.85),
    "shared memory, digest": ("memcpy", 0.45, 0.85),
    "gloo": ("bare gloo", 0.80, 0.90),
    "gloo, digest": ("bare gloo", 0.70, 0.90),
}
"""Per transport: its peer, the share of the peer's speed that it must reach, and where we want it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result."""

    what: str
    placement: str  # of the blocks: scattered, runs, or none
    block_bytes: int
    seconds: float
    gb_per_s: float


def table(figures: list[Figure]) -> str:
    lines = ["| block | what | blocks lie | GB/s | of memcpy | of bare gloo | gate |", "|---|---|---|---|---|---|---|"]
    for figure in figures:
        speeds = {(f.what, f.placement): f.gb_per_s for f in figures if f.block_bytes == figure.block_bytes}
        peers = {"memcpy": ("memcpy", ""), "bare gloo": ("bare gloo", figure.placement or "runs")}
        shares = {peer: figure.gb_per_s / speeds[key] for peer, key in peers.items()}
        numbers = " | ".join(f"{number:.2f}" for number in (figure.gb_per_s, *shares.values()))
        row = f"{figure.block_bytes >> 10:,} KiB | {figure.what} | {figure.placement} | {numbers}"
        lines.append(f"| {row} | {judged(figure.what, shares)} |")
    return "\n".join(lines)


def judged(what: str, shares: dict[str, float]) -> str:
    """How a transport stands to its gate; nothing for the peers."""
    if what not in GATES:
        return ""
    peer, gate, stretch = GATES[what]
    share = shares[peer]
    return "stretch" if share >= stretch else "met" if share >= gate else f"below {gate:.0%} of {peer}"
