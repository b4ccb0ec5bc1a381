"""The page's colours: text that can be read, and phases that can be told apart, also by the colour-blind."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from router.dashboard.page import build_page

PHASES = ("queue", "prefill", "transfer", "wait", "decode", "loss", "other")
STACKS = (PHASES, ("good", "miss", "other"), ("used", "cached", "free"))

# Full dichromacy, Machado, Oliveira and Fernandes (2009), linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "deuteranopia": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "tritanopia": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.fixture(params=[0, 1], ids=["light", "dark"])
def colours(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """Linear RGB by name, of one theme."""
    style = build_page().html.decode()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    return {name: linear(pair[request.param]) for name, *pair in pairs}


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG 2."""
    low, high = sorted((float(TO_XYZ[1] @ one), float(TO_XYZ[1] @ other)))
    return (high + 0.05) / (low + 0.05)


def lab(colour: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, in which distances are about what is seen."""
    xyz = TO_XYZ @ colour / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_texts_and_marks_have_contrast(colours: dict[str, np.ndarray]) -> None:
    """WCAG AA: 4.5 for text on every ground that it stands on, 3 for what only has to be seen."""
    texts = {(text, ground) for text in ("ink", "soft", "link") for ground in ("panel", "back", "sunk")}
    texts |= {("good", "panel"), ("miss", "panel"), ("bad", "panel"), ("bad", "bad-back"), ("ink", "bad-back")}
    texts |= {("warn", "sunk"), *(("on-tone", tone) for tone in ("queue", "prefill", "decode", "wait", "bad"))}
    marks = {(tone, "panel") for tone in (*PHASES, "good", "miss", "used", "key-edge")}
    found = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in texts | marks}
    assert not {pair: value for pair, value in found.items() if value < (4.5 if pair in texts else 3.0)}


@pytest.mark.parametrize("sight", SIGHT)
def test_what_is_stacked_can_be_told_apart(colours: dict[str, np.ndarray], sight: str) -> None:
    """Any two colours of a stack differ by 20 or more (2 is just seen), with any kind of sight."""
    seen = {name: lab(np.clip(SIGHT[sight] @ colour, 0, 1)) for name, colour in colours.items()}
    near = {
        (one, other): float(np.linalg.norm(seen[one] - seen[other]))
        for stack in STACKS
        for one, other in combinations(stack, 2)
    }
    assert not {pair: round(distance) for pair, distance in near.items() if distance < 20}
