"""What a check found, and all of it as a table or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum


class Status(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"  # it will serve, slower or with less than was wanted
    FAIL = "fail"  # it will not serve, or not as asked


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    area: str
    check: str
    status: Status
    found: str
    hint: str = ""  # what to do about it


def ok(area: str, check: str, found: str) -> Finding:
    return Finding(area, check, Status.OK, found)


def warn(area: str, check: str, found: str, hint: str) -> Finding:
    return Finding(area, check, Status.WARN, found, hint)


def fail(area: str, check: str, found: str, hint: str) -> Finding:
    return Finding(area, check, Status.FAIL, found, hint)


def table(findings: Sequence[Finding]) -> str:
    """One line each, hints below; the areas in the order given."""
    width = max(len(one.check) for one in findings)
    lines: list[str] = []
    area = ""
    for one in findings:
        if one.area != area:
            area = one.area
            lines += [*([""] if lines else []), area]
        lines.append(f"  {one.status.value:<4}  {one.check:<{width}}  {one.found}")
        if one.hint:
            lines.append(f"  {'':<4}  {'':<{width}}  -> {one.hint}")
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    counts = Counter(one.status for one in findings)
    return ", ".join(f"{counts[status]} {status.value}" for status in Status)


def as_json(findings: Sequence[Finding], links: Sequence[object]) -> str:
    """For programs: the findings, and the links' figures in bytes and seconds."""
    said = {
        "status": worst(findings).value,
        "findings": [asdict(one) | {"status": one.status.value} for one in findings],
        "links": [asdict(one) for one in links],  # type: ignore[call-overload]
    }
    return json.dumps(said, indent=1) + "\n"


def worst(findings: Sequence[Finding]) -> Status:
    order = list(Status)
    return max((one.status for one in findings), key=order.index, default=Status.OK)
