"""`--compat splitwise`: a cluster of prompt and token machines, by Splitwise's rules."""

from __future__ import annotations

import argparse

from deploy.arguments import pair_count, pairs, refuse, require, write_output
from deploy.compat.timings import check_files, json_lines, percentiles
from pdserve.exit import ExitCode
from pdserve.settings import ConfigError
from placement.compat.errors import ProfileError
from placement.compat.requests import read_requests
from placement.compat.splitwise import Machines, read_curve
from placement.compat.splitwise.curves import model_of

MODE = "--compat splitwise"
ALONE = ("a100-80gb", 8)  # the machine on which a request alone is the measure of slowdown


def run_simulate(args: argparse.Namespace) -> int:
    """One cluster; returns the exit code."""
    require(args, ("profile", "model", "prefill", "decode", "requests", "output"), MODE)
    refuse(args, ("backend", "slo_ttft", "slo_tpot"), f"simulate {MODE}")
    model = model_of(args.model)
    prompt, token = (_machines(args, name, getattr(args, name)) for name in ("prefill", "decode"))
    check_files(args)
    requests = read_requests(args.requests)
    from deploy.planning.compiling import tell_if_compiling
    from placement.compat.splitwise.cluster import walk
    from placement.compat.splitwise.simulate import simulate  # compiled: numba takes a while to import

    tell_if_compiling(walk)
    timings = simulate(model, [prompt], [token], requests, args.rate_scale or 1.0)
    columns = {"ttft_s": timings.ttft_s, "tbt_s": timings.tbt_s, "e2e_s": timings.e2e_s}
    write_output(args.output, json_lines(requests, columns))
    print("\n".join([f"{len(requests)} requests to {args.output}", *percentiles(columns)]))
    from placement.compat.splitwise.criterion import PERCENTILES, meets_all, slowdowns

    try:
        found = slowdowns(timings, requests, read_curve(args.profile, args.model, *ALONE))
    except ProfileError:  # a profile without that machine: no slowdown to tell
        return ExitCode.OK
    names = "/".join(f"p{one}" for one in PERCENTILES)
    shown = ", ".join(f"{name} {'/'.join(f'{one:.2f}' for one in values)}" for name, values in found.items())
    print(f"slowdown {names}: {shown}: {'within' if meets_all(found) else 'misses'} Splitwise's SLO")
    return ExitCode.OK


def _machines(args: argparse.Namespace, name: str, text: str) -> Machines:
    values = pairs(name, text, {"gpu": "", "tp": "8", "machines": "1"})
    if not values["gpu"]:
        raise ConfigError([f"--{name} is {text!r}; gpu=NAME is missing"])
    curve = read_curve(args.profile, args.model, values["gpu"], pair_count(name, "tp", values["tp"]))
    return Machines(curve, pair_count(name, "machines", values["machines"]))
