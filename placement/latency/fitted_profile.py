"""The file of `pdserve profile`: what routers and the mock engine read, and under `measured` everything behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from placement.latency.checked_json import check_known, items_of, made
from placement.latency.fitted import PiecewiseSteps, Regime
from placement.latency.fitted_fit import FITS, cross_validate, fit_linear, fit_piecewise, fit_transfer
from placement.latency.fitted_points import FitError, StepPoint, by_regime, relative_errors
from placement.latency.served import Extras, MockServed, ServedSteps, piecewise
from placement.simulator.cluster import Delays, LinearSteps, LinkSpec, StepTimes
from scheduling.latency import LatencyModel, model_from_json, model_to_json

FORMAT = 1
CURVES = ("prefill", "decode", "mixed")
_KEYS = (
    "format", "complete", "best_fit", "subject", "delays", "colocated_delays", "served", "mock", "steps", "error",
    "cross_validation", "points", "transport", "transfers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured, on what."""

    model: str
    kv_bytes_per_token: int
    weight_bytes: int
    dtype: str
    device: str
    threads: int
    kernels: str
    machine: str
    power_w: float | None = None  # of what one worker runs on; None: not known
    cost_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that was measured of one kind of worker."""

    linear: LatencyModel
    subject: Subject | None = None  # None: a profile of coefficients only
    steps: PiecewiseSteps | None = None
    points: tuple[StepPoint, ...] = ()
    transfers: tuple[tuple[int, float], ...] = ()  # bytes, seconds
    transport: str | None = None
    delays: Delays | None = None  # of a split cluster
    colocated_delays: Delays | None = None
    seen: Mapping[str, Mapping[str, FitError]] = field(default_factory=dict)  # fit -> kind of step -> error
    held_out: Mapping[str, Mapping[str, FitError]] = field(default_factory=dict)  # the same by cross-validation
    served: ServedSteps | None = None
    mock: MockServed | None = None  # where delays are the mock engine's
    complete: bool = True  # False: the budget ended, or somebody, before every shape had its turn

    @property
    def best_fit(self) -> str:
        """The one that cross-validation found nearer; piecewise where there were too few points to tell."""
        if self.steps is None:
            return "linear"
        medians = {name: errors["all"].median for name, errors in self.held_out.items()}
        return min(medians, key=lambda name: medians[name]) if medians else "piecewise"

    @property
    def link(self) -> LinkSpec | None:
        """What transfers took, as a link; None: they were not measured."""
        transfer = self.linear.transfer
        return None if transfer is None else LinkSpec(transfer.bytes_per_s, transfer.latency_s)

    @property
    def mock_step_times(self) -> StepTimes:
        """Of the mock engine, which takes the linear model's times, as they are when it serves."""
        return LinearSteps(self.linear) if self.mock is None else self.mock.applied(self.linear)

    @property
    def step_times(self) -> StepTimes:
        """For simulators: as they are in workers that serve in a split cluster, where that was measured."""
        return self._applied(None if self.served is None else self.served.split)

    @property
    def colocated_step_times(self) -> StepTimes:
        """The same of workers that compute prompts and decode them."""
        return self._applied(None if self.served is None else self.served.colocated)

    def _applied(self, extras: Extras | None) -> StepTimes:
        fitted = None if self.best_fit == "linear" else self.steps
        if extras is not None:
            return extras.applied(fitted or piecewise(self.linear.coefficients))
        return fitted or LinearSteps(self.linear)


def make_profile(
    subject: Subject,
    points: Sequence[StepPoint],
    transfers: Sequence[tuple[int, float]] = (),
    transport: str | None = None,
    delays: Delays | None = None,
    colocated_delays: Delays | None = None,
    complete: bool = True,
) -> Profile:
    """Fit, and say how well it fits. Errors: ValueError without any points."""
    if not points:
        raise ValueError("no step was measured")
    seen, held_out = {}, {}
    for name, fit in FITS.items():
        seen[name] = by_regime(points, relative_errors(fit(points), points))
        if (errors := cross_validate(fit, points)) is not None:
            held_out[name] = errors
    linear = LatencyModel(fit_linear(points), fit_transfer(transfers))
    return Profile(
        linear, subject, fit_piecewise(points), tuple(points), tuple(transfers), transport, delays, colocated_delays,
        seen, held_out, complete=complete,
    )  # fmt: skip


def profile_to_json(profile: Profile) -> dict[str, Any]:
    """The whole file; `scheduling.latency` reads it too."""
    base = model_to_json(profile.linear)
    if profile.subject is None:
        return base
    measured = {
        "format": FORMAT,
        "complete": profile.complete,
        "best_fit": profile.best_fit,
        "subject": asdict(profile.subject),
        "delays": None if profile.delays is None else asdict(profile.delays),
        "colocated_delays": None if profile.colocated_delays is None else asdict(profile.colocated_delays),
        "served": None if profile.served is None else asdict(profile.served),
        "mock": None if profile.mock is None else asdict(profile.mock),
        "steps": None if profile.steps is None else {name: asdict(getattr(profile.steps, name)) for name in CURVES},
        "error": _errors_to_json(profile.seen),
        "cross_validation": _errors_to_json(profile.held_out),
        "points": [asdict(point) for point in profile.points],
        "transport": profile.transport,
        "transfers": [{"bytes": size, "seconds": seconds} for size, seconds in profile.transfers],
    }
    return {**base, "measured": measured}


def load_measured_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile, old or new. Errors: OSError; ValueError that names the file, the key and what is wrong."""
    where = os.fspath(path)
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    return profile_from_json(given, where)


def profile_from_json(given: object, where: str = "profile") -> Profile:
    """The same from what the file holds."""
    linear = model_from_json(given, where)
    assert isinstance(given, Mapping)
    measured = given.get("measured")
    if measured is None:
        return Profile(linear)
    where = f"{where}: measured"
    if measured.get("format") != FORMAT:
        raise ValueError(f"{where}: format is {measured.get('format')!r}; this version reads {FORMAT}")
    check_known(measured, _KEYS, where)
    transport, complete = measured.get("transport"), measured.get("complete", True)
    if transport is not None and not isinstance(transport, str):
        raise ValueError(f"{where}: transport is {transport!r}; it must be text or null")
    if not isinstance(complete, bool):
        raise ValueError(f"{where}: complete is {complete!r}; it must be true or false")
    steps = measured.get("steps")
    delays = {
        name: None if measured.get(name) is None else made(Delays, measured[name], f"{where}: {name}")
        for name in ("delays", "colocated_delays")
    }
    served, mock = measured.get("served"), measured.get("mock")
    transfers = [made(_Transfer, one, f"{where}: transfers {i}") for i, one in _rows(measured, "transfers", where)]
    return Profile(
        linear,
        made(Subject, measured.get("subject"), f"{where}: subject"),
        None if steps is None else _steps(steps, f"{where}: steps"),
        tuple(made(StepPoint, one, f"{where}: points {i}") for i, one in _rows(measured, "points", where)),
        tuple((one.bytes, one.seconds) for one in transfers),
        transport,
        delays["delays"],
        delays["colocated_delays"],
        _errors(measured.get("error"), f"{where}: error"),
        _errors(measured.get("cross_validation"), f"{where}: cross_validation"),
        None if served is None else made(ServedSteps, served, f"{where}: served"),
        None if mock is None else made(MockServed, mock, f"{where}: mock"),
        complete,
    )


@dataclass(frozen=True, slots=True)
class _Transfer:
    bytes: int
    seconds: float


def _errors_to_json(errors: Mapping[str, Mapping[str, FitError]]) -> dict[str, Any]:
    return {fit: {kind: asdict(error) for kind, error in kinds.items()} for fit, kinds in errors.items()}


def _errors(given: object, where: str) -> dict[str, dict[str, FitError]]:
    return {
        str(fit): {
            str(kind): made(FitError, error, f"{where}: {fit}: {kind}") for kind, error in items_of(kinds, where)
        }
        for fit, kinds in items_of(given, where)
    }


def _rows(given: Mapping[str, Any], key: str, where: str) -> list[tuple[int, object]]:
    rows = given.get(key)
    if not isinstance(rows, list):
        raise ValueError(f"{where}: {key} must be a list, found {type(rows).__name__}")
    return list(enumerate(rows))


def _steps(given: object, where: str) -> PiecewiseSteps:
    found = dict(items_of(given, where))
    if set(found) != set(CURVES):
        raise ValueError(f"{where}: has {', '.join(map(str, found))}; it must have {', '.join(CURVES)}")
    prefill, decode, mixed = (made(Regime, found[name], f"{where}: {name}") for name in CURVES)
    return PiecewiseSteps(prefill, decode, mixed)
