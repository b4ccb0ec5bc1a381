"""What is asked and what may be tried, from the flags of `pdserve plan`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from deploy.arguments import count, refuse, require
from deploy.planning.prices import check_prices, priced
from deploy.planning.profile import THIS_MACHINE, FromProfile, check_measured
from deploy.planning.subject import gpus
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.hardware.catalogue import GpuType
from placement.latency.shape import ModelShape
from placement.search.bounds import Slo
from placement.search.candidate import Candidate
from placement.search.goodput import Effort
from placement.search.question import Price, Question
from placement.search.scale import MOST_COPIES, PART_GPUS
from placement.search.space import Affinity, Space, candidates

MODE = "plan"
MOST_GPUS = PART_GPUS * MOST_COPIES  # that a budget may allow, or a rate ask for, when --gpus does not say
LEAST_RATE = 1e-4  # workers report every second of a simulation, which is hundreds of requests long
_COMPAT_ONLY = ("backend", "requests", "max_rate_per_gpu", "resolution", "nodes")
QUICK = Effort(min_requests=300, max_requests=1200, min_seconds=20.0, tolerance=0.04, max_probes=8)


def check_flags(args: argparse.Namespace) -> None:
    """Errors: ConfigError for flags that are missing, or that mean nothing together."""
    refuse(args, _COMPAT_ONLY, f"{MODE} without --compat")
    require(args, ("model", "workload", "slo_ttft", "slo_tpot"), MODE)
    if args.gpus is None and args.rate is None and args.max_cost is None and args.max_power is None:
        raise ConfigError(["--gpus is missing; plan needs it, or one of --rate, --max-cost, --max-power"])
    if args.price is not None and args.rate is None:
        raise ConfigError(["--price means nothing without --rate: without a rate to carry, the most is searched"])
    if args.validate == "mock" and args.one_machine:
        raise ConfigError(
            ["--validate mock and --one-machine need two profiles: the mock engine's delays are measured by `pdserve "
             "profile --mock-delays`, what workers cost one another only without it; leave one of the two flags out"]
        )  # fmt: skip
    if args.rate is not None and args.rate < LEAST_RATE:
        raise ConfigError([f"--rate is {args.rate:g}; it must be at least {LEAST_RATE:g} requests/s"])
    if args.bounds:
        refuse(args, ("output", "report", "processes", "quick", "no_what_if", "validate"), f"{MODE} --bounds")


def question_of(args: argparse.Namespace) -> Question:
    """Errors: ConfigError."""
    check_attainment(args)
    slo = Slo(args.slo_ttft, args.slo_tpot, args.attainment or 0.9)
    effort = QUICK if args.quick or args.one_machine else Effort()  # of one machine nothing is compiled
    return Question(slo, args.rate, Price(args.price or "gpus"), effort, args.seed or 0)


def check_attainment(args: argparse.Namespace) -> None:
    """Errors: ConfigError."""
    if args.attainment is not None and args.attainment >= 1:
        raise ConfigError([f"--attainment: {args.attainment:g} must be above 0 and below 1"])


def space_of(args: argparse.Namespace, profile: FromProfile | None) -> Space:
    """What may be tried, with its prices. Errors: ConfigError."""
    measured = args.profile is not None
    gpu = args.gpu if args.gpu is not None else THIS_MACHINE if measured else "h100"
    both = _types("--gpu", gpu, args.gpus_per_node)
    prefill = both if args.prefill_gpu is None else _types("--prefill-gpu", args.prefill_gpu, args.gpus_per_node)
    decode = both if args.decode_gpu is None else _types("--decode-gpu", args.decode_gpu, args.gpus_per_node)
    subject = None if profile is None else profile.subject
    prefill, decode = priced(prefill, args, subject), priced(decode, args, subject)
    parallel = [f"--{name} {given}" for name in ("tp", "pp") if (given := getattr(args, name)) not in (None, "1")]
    check_measured(profile, (*prefill, *decode), parallel)
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


def check_sizes(args: argparse.Namespace, space: Space, model: ModelShape) -> list[str]:
    """Which numbers of --tp and --pp no worker can have, a line each. Errors: ConfigError where none of a flag can."""
    notes = []
    for flag, given, sizes, of, what in (
        ("--tp", args.tp, space.tps, model.heads, "heads"),
        ("--pp", args.pp, space.pps, model.layers, "layers"),
    ):
        most = space.gpus
        if flag == "--tp":
            most = min(most, max(gpu.gpus_per_node for gpu in (*space.prefill_gpus, *space.decode_gpus)))
        able = [number for number in range(1, min(most, of) + 1) if of % number == 0]
        unable = [number for number in sizes if number not in able]
        if given is None or not unable:
            continue
        allowed = f"it must divide the {of} {what} of {model.name}" + (f" and be at most {most:,}" if most < of else "")
        allowed += f": {', '.join(map(str, able))}"
        if len(unable) == len(sizes):
            raise ConfigError([f"{flag} is {given}; {allowed}"])
        notes.append(f"left out: {flag} {', '.join(map(str, unable))}; {allowed}")
    return notes


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
