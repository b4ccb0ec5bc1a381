"""What is asked and what may be tried, from the flags of `pdserve plan`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from deploy.arguments import count, refuse, require
from deploy.planning.prices import check_prices, priced
from deploy.planning.subject import THIS_MACHINE, FromProfile, gpus
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.hardware.catalogue import GpuType
from placement.latency.shape import ModelShape
from placement.search.bounds import Slo
from placement.search.candidate import Candidate
from placement.search.goodput import Effort
from placement.search.scale import MOST_COPIES, PART_GPUS
from placement.search.search import Price, Question
from placement.search.space import Affinity, Space, candidates

MODE = "plan"
MOST_GPUS = PART_GPUS * MOST_COPIES  # that a budget may allow, or a rate ask for, when --gpus does not say
_COMPAT_ONLY = ("backend", "requests", "max_rate_per_gpu", "resolution", "nodes")
_QUICK = Effort(min_requests=300, max_requests=1200, min_seconds=20.0, tolerance=0.04, max_probes=8)


def check_flags(args: argparse.Namespace) -> None:
    """Errors: ConfigError for flags that are missing, or that mean nothing together."""
    refuse(args, _COMPAT_ONLY, f"{MODE} without --compat")
    require(args, ("model", "workload", "slo_ttft", "slo_tpot"), MODE)
    if args.gpus is None and args.rate is None and args.max_cost is None and args.max_power is None:
        raise ConfigError(["--gpus is missing; plan needs it, or one of --rate, --max-cost, --max-power"])
    if args.price is not None and args.rate is None:
        raise ConfigError(["--price means nothing without --rate: without a rate to carry, the most is searched"])
    if args.bounds:
        refuse(args, ("output", "report", "processes", "quick", "no_what_if", "validate"), f"{MODE} --bounds")


def question_of(args: argparse.Namespace) -> Question:
    """Errors: ConfigError."""
    if args.attainment is not None and args.attainment >= 1:
        raise ConfigError([f"--attainment: {args.attainment:g} must be above 0 and below 1"])
    slo = Slo(args.slo_ttft, args.slo_tpot, args.attainment or 0.9)
    effort = _QUICK if args.quick or args.one_machine else Effort()  # of one machine nothing is compiled
    return Question(slo, args.rate, Price(args.price or "gpus"), effort, args.seed or 0)


def space_of(args: argparse.Namespace, profile: FromProfile | None) -> Space:
    """What may be tried, with its prices. Errors: ConfigError."""
    measured = args.profile is not None
    gpu = args.gpu or ("this-machine" if measured else "h100")
    both = _types("--gpu", gpu, args.gpus_per_node)
    prefill = both if args.prefill_gpu is None else _types("--prefill-gpu", args.prefill_gpu, args.gpus_per_node)
    decode = both if args.decode_gpu is None else _types("--decode-gpu", args.decode_gpu, args.gpus_per_node)
    subject = None if profile is None else profile.subject
    prefill, decode = priced(prefill, args, subject), priced(decode, args, subject)
    if profile is not None and profile.of_one_device and len(names := {gpu.name for gpu in (*prefill, *decode)}) > 1:
        raise ConfigError([f"--profile was measured on one kind of device; {' and '.join(sorted(names))} are several"])
    if (
        subject is not None
        and subject.device == "cpu"
        and (wrong := sorted({one.name for one in (*prefill, *decode)} - {THIS_MACHINE}))
    ):
        raise ConfigError(
            [f"--profile was measured on a CPU; its steps are not those of {' and '.join(wrong)}: leave --gpu out"]
        )
    for flag in ("tp", "pp") if profile is not None and profile.of_one_device else ():
        if getattr(args, flag) not in (None, "1"):
            raise ConfigError([f"--{flag} {getattr(args, flag)}: the profile is of workers with tp=1 and pp=1"])
    max_cost, max_power = args.max_cost or float("inf"), args.max_power or float("inf")
    local = _numbers("--local-prefill-max-tokens", args.local_prefill_max_tokens, ())
    space = Space(
        gpus=args.gpus or _affordable((*prefill, *decode), max_cost, max_power),
        prefill_gpus=prefill,
        decode_gpus=decode,
        tps=_numbers("--tp", args.tp, (1,) if measured else (1, 2, 4, 8)),
        pps=_numbers("--pp", args.pp, (1,)),
        chunks=_numbers("--chunk", args.chunk, (512, 2048)),
        local_prefill=(0, *local),
        split=args.only != "colocated",
        colocated=args.only != "split",
        affinity=Affinity(args.affinity or "high"),
        max_cost_per_hour=max_cost,
        max_power_w=max_power,
        full=args.rate is None,
    )
    check_prices(args, space)
    return space


def listed(space: Space, model: ModelShape) -> Iterator[Candidate]:
    """The placements. Errors: StartError when they are too many."""
    try:
        yield from candidates(space, model)
    except ValueError as error:
        raise StartError(f"--gpus {space.gpus}: {error}", ExitCode.FAILED) from None


def _affordable(types: tuple[GpuType, ...], max_cost: float, max_power: float) -> int:
    """GPUs that the budgets allow at most."""
    cost = min(gpu.cost_per_hour for gpu in types)
    power = min(gpu.power_w for gpu in types)
    most = min(max_cost / cost if cost else MOST_GPUS, max_power / power if power else MOST_GPUS, MOST_GPUS)
    return max(1, int(most))


def _types(flag: str, text: str, per_node: int | None) -> tuple[GpuType, ...]:
    found = gpus(flag, text)
    return found if per_node is None else tuple(replace(gpu, gpus_per_node=per_node) for gpu in found)


def _numbers(flag: str, text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if text is None:
        return default
    try:
        return tuple(sorted({count(one.strip()) for one in text.split(",")}))
    except argparse.ArgumentTypeError as error:
        raise ConfigError([f"{flag}: {error}"]) from None
