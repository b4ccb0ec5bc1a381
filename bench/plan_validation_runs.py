"""What real clusters did, as data: it can be predicted again, with another profile or by another simulator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.plan_validation_figures import Sent, Targets
from bench.plan_validation_now import Speed
from bench.plan_validation_twin import Limits, Placement

_KINDS = {"prompt_tokens": np.int64, "output_tokens": np.int64, "counts": np.bool_}  # of columns; others are seconds


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One placement under one rate, for some seconds."""

    placement: Placement
    rate: float
    turn: int  # of the rounds
    sent: Sent
    speed: Speed | None = None  # of the machine just before, by the profile of then

    def to_json(self) -> dict[str, Any]:
        columns = {field.name: getattr(self.sent, field.name).tolist() for field in fields(Sent)}
        speed = None if self.speed is None else asdict(self.speed)
        return {"placement": asdict(self.placement), "rate": self.rate, "turn": self.turn, "speed": speed, **columns}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Run:
        """Errors: KeyError, TypeError, ValueError."""
        names = [field.name for field in fields(Sent)]
        sent = Sent(*(np.array(row[name], _KINDS.get(name, np.float64)) for name in names))
        speed = None if row["speed"] is None else Speed(**row["speed"])
        return cls(Placement(**row["placement"]), float(row["rate"]), int(row["turn"]), sent, speed)


@dataclass(frozen=True, slots=True)
class Validation:
    """Everything that was run, and under what."""

    model: str | None  # None: the mock engine
    workload: str
    duration_s: float
    targets: Targets
    limits: Limits
    runs: tuple[Run, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model, "workload": self.workload, "duration_s": self.duration_s,
            "targets": asdict(self.targets),
            "limits": asdict(self.limits), "runs": [run.to_json() for run in self.runs],
        }  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Validation:
        """What --json wrote. Errors: OSError; ValueError, which names the file, for one that is none."""
        try:
            given = json.loads(path.read_text())
            runs = tuple(Run.from_json(row) for row in given["runs"])
            limits = Limits(**given["limits"])
            targets = Targets(**given["targets"])
            return cls(given["model"], str(given["workload"]), float(given["duration_s"]), targets, limits, runs)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not of plan_validation --json ({type(error).__name__}: {error})") from None
