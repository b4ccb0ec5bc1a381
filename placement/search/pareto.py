"""Placements that no other beats in everything."""

from __future__ import annotations

from collections.abc import Iterable

from placement.search.answer import Answer
from placement.search.question import Price


def front(answers: Iterable[Answer], price: Price) -> list[Answer]:
    """Simulated answers, by price: each serves more than every cheaper one."""
    found: list[Answer] = []
    served = [answer for answer in answers if answer.rate > 0.0]
    for answer in sorted(served, key=lambda one: (price.of(one.candidate), -one.rate)):
        if not found or answer.rate > found[-1].rate:
            found.append(answer)
    return found
