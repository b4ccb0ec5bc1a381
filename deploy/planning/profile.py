"""What --profile brings: step times and what was measured beside them, and for which workers they stand."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.compat.errors import ProfileError
from placement.hardware.catalogue import GpuType
from placement.latency.fitted_points import Reach
from placement.latency.fitted_profile import Subject, load_measured_profile
from placement.latency.imports import Foreign, foreign_steps
from placement.latency.served import ServedSteps
from placement.search.build import DoesNotFit, MakeStepTimes, Serving
from placement.search.candidate import Pool
from placement.simulator.cluster import Delays, LinkSpec, StepTimes

THIS_MACHINE = "this-machine"


@dataclass(frozen=True, slots=True)
class Measured:
    """Step times of one measured worker stand for all; plain data, so that search processes can have it."""

    steps: StepTimes

    def __call__(self, gpu: GpuType, tp: int, pp: int) -> StepTimes:
        return self.steps


@dataclass(frozen=True, slots=True)
class Imported:
    """Step times out of another system's file; plain data too."""

    foreign: Foreign

    def __call__(self, gpu: GpuType, tp: int, pp: int) -> StepTimes:
        """Errors: DoesNotFit where the file has none of that GPU, tp and pp."""
        try:
            return self.foreign(gpu.name, tp, pp)
        except ProfileError as error:
            raise DoesNotFit(error.message) from None


@dataclass(frozen=True, slots=True)
class FromProfile:
    """What a file of measurements says; None: nothing."""

    steps: MakeStepTimes
    colocated_steps: MakeStepTimes | None = None  # None: the same
    link: LinkSpec | None = None
    delays: Delays | None = None
    colocated_delays: Delays | None = None
    subject: Subject | None = None
    served: ServedSteps | None = None
    of_one_device: bool = False  # its step times stand for every worker
    complete: bool = True
    measured: Reach | None = None  # beyond it the fit is extrapolated

    def applied(self, serving: Serving) -> Serving:
        """With what was measured instead of what was taken."""
        serving = replace(
            serving, step_times=self.steps, colocated_step_times=self.colocated_steps, link=self.link or serving.link
        )
        if self.delays is None:
            return serving
        return replace(serving, delays=self.delays, colocated_delays=self.colocated_delays)

    def reach(self, pool: Pool) -> Reach | None:
        """How far the step times of a pool's workers were measured; None: the file does not say."""
        if not isinstance(self.steps, Imported):
            return self.measured
        foreign = self.steps.foreign
        return foreign.reach(pool.gpu.name, pool.tp, pool.pp)


def profile_of(args: argparse.Namespace, *, mock: bool = False) -> FromProfile | None:
    """What --profile names; None: nothing. `mock`: as the mock engine takes it, by its linear model.

    A profile of `pdserve profile`, of the mock engine, of DistServe or of Splitwise. Errors: StartError (code 5).
    """
    if args.profile is None:
        return None
    path: Path = args.profile
    try:
        if (foreign := foreign_steps(path, args.model)) is not None:
            return FromProfile(Imported(foreign))
        measured = load_measured_profile(path)
    except OSError as error:
        raise StartError(f"--profile {path}: {error.strerror or error}", ExitCode.WORKLOAD) from None
    except ValueError as error:
        raise StartError(f"--profile {path}: {str(error).removeprefix(f'{path}: ')}", ExitCode.WORKLOAD) from None
    steps = measured.mock_step_times if mock else measured.step_times
    return FromProfile(
        Measured(steps),
        None if mock else Measured(measured.colocated_step_times),
        measured.link,
        measured.delays,
        measured.colocated_delays,
        measured.subject,
        measured.served,
        True,
        measured.complete,
        None if mock else Reach.of(measured.points),
    )


def check_measured(profile: FromProfile | None, types: Iterable[GpuType], parallel: Sequence[str] = ()) -> None:
    """Whether what was measured can stand for these workers; `parallel`: what was said of tp and pp beside 1.

    Errors: ConfigError.
    """
    if profile is None or not profile.of_one_device:
        return
    names, subject = sorted({gpu.name for gpu in types}), profile.subject
    if len(names) > 1:
        raise ConfigError([f"--profile was measured on one kind of device; {' and '.join(names)} are several"])
    if subject is not None and subject.device == "cpu" and names != [THIS_MACHINE]:
        raise ConfigError([f"--profile was measured on a CPU; its steps are not those of {names[0]}: leave --gpu out"])
    if parallel:
        raise ConfigError([f"{parallel[0]}: the profile is of workers with tp=1 and pp=1"])
