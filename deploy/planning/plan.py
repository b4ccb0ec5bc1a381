"""`pdserve plan` without --compat: search, say the answer, write the plan."""

from __future__ import annotations

import argparse
import json
import sys

from deploy.compat.arguments import check_output, count, refuse, require, write_output
from deploy.planning.subject import gpus, serving_of, workload_of
from pdserve.exit import ExitCode
from pdserve.settings import ConfigError
from placement.search.bounds import Slo
from placement.search.goodput import Effort
from placement.search.parallel import run_search
from placement.search.plan_file import plan_to_json
from placement.search.search import Outcome, Price, Question, Search
from placement.search.space import Space, candidates
from placement.search.whatif import CHANGES, Consequence, consequence

MODE = "plan"
_COMPAT_ONLY = ("backend", "requests", "max_rate_per_gpu", "resolution", "nodes", "gpus_per_node", "affinity")
_EFFORT = Effort()
_QUICK = Effort(min_requests=300, max_requests=1200, min_seconds=20.0, tolerance=0.04, max_probes=8)
_SHOWN = 8


def run_plan(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 when no placement can serve within the targets."""
    refuse(args, _COMPAT_ONLY, f"{MODE} without --compat")
    require(args, ("model", "workload", "slo_ttft", "slo_tpot", "gpus"), MODE)
    for path in (args.output, args.report):
        if path is not None:
            check_output(path)
    question, space = _question(args), _space(args)
    spec, source = workload_of(args.workload)
    serving = serving_of(args, source)
    search = Search(question, serving, source)
    search.screen(candidates(space, serving.model))
    outcome = run_search(search, spec, args.processes, _Progress())
    best = outcome.best
    what_if: list[Consequence] = []
    if best is not None and outcome.complete:
        what_if = [consequence(change, best.candidate, question, serving, source) for change in CHANGES]
    answer = answer_line(outcome, question)
    print(answer)
    print("\n".join(_table(outcome)))
    for one in what_if[1:]:
        print(f"  if {one.change.name}: {one.rate:.3g} requests/s, bound by {one.binding}")
    about = {"model": serving.model.name, "workload": args.workload, "gpus": args.gpus, "seed": question.seed}
    if args.output is not None:
        plan = plan_to_json(outcome, question, what_if, about)
        write_output(args.output, json.dumps(plan, indent=1) + "\n")
        print(f"plan: {args.output}")
    if args.report is not None:
        from placement.search.report import html_report  # matplotlib takes a while to import

        title = f"{serving.model.name}, {args.workload}, {args.gpus} GPUs"
        write_output(args.report, html_report(outcome, question, what_if, title, answer))
        print(f"report: {args.report}")
    return ExitCode.OK if best is not None else ExitCode.FAILED


def answer_line(outcome: Outcome, question: Question) -> str:
    """One sentence."""
    slo = question.slo
    target = f"TTFT {slo.ttft_s:g} s and TPOT {slo.tpot_s:g} s for {100 * slo.attainment:g} %"
    best = outcome.best
    if best is None:
        reasons = [answer.reason for answer in outcome.answers[:1]] or list(outcome.unfit[:1])
        why = f": {reasons[0]}" if reasons else ""
        carry = "" if question.rate is None else f" of {question.rate:g} requests/s"
        return f"no placement within the budget meets {target}{carry}{why}"
    candidate, goodput = best.candidate, best.goodput
    assert goodput is not None
    if question.rate is not None:
        return (
            f"{candidate}: carries {question.rate:g} requests/s with {target}, on {candidate.gpus} GPUs, "
            f"{candidate.cost_per_hour:.2f} $/h, {candidate.power_w:,.0f} W; bound by {best.reason}"
        )
    return (
        f"{candidate}: {goodput.rate:.3g} requests/s ({goodput.rate / candidate.gpus:.3g} per GPU) with {target}; "
        f"95 % confidence {goodput.low:.3g} to {goodput.high:.3g}; bound by {best.reason}"
    )


def _table(outcome: Outcome) -> list[str]:
    rows = [f"{len(outcome.answers)} placements looked at, {len(outcome.unfit)} do not fit in memory"
            + ("" if outcome.complete else "; interrupted, not all were simulated")]  # fmt: skip
    for answer in outcome.answers[:_SHOWN]:
        rate = f"{answer.rate:8.3g}/s" if answer.goodput is not None else "not simulated"
        rows.append(f"  {rate:>13}  {answer.candidate}  ({answer.reason})")
    return rows


class _Progress:
    """One line on standard error, where that is a terminal."""

    def __call__(self, search: Search, running: int) -> None:
        if not sys.stderr.isatty():
            return
        done = len(search.outcome(complete=False).answers)
        best = search.best
        said = "" if best is None else f", best so far {best.rate:.3g}/s: {best.candidate}"
        end = "\n" if not running else "\r"
        print(f"\x1b[2K{done} of {search.num_candidates} placements{said}", end=end, file=sys.stderr, flush=True)


def _question(args: argparse.Namespace) -> Question:
    try:
        slo = Slo(args.slo_ttft, args.slo_tpot, args.attainment or 0.9)
    except ValueError as error:
        raise ConfigError([f"--attainment: {error}"]) from None
    if args.price is not None and args.rate is None:
        raise ConfigError(["--price means nothing without --rate: without a rate to carry, the most is searched"])
    return Question(slo, args.rate, Price(args.price or "gpus"), _QUICK if args.quick else _EFFORT, args.seed or 0)


def _space(args: argparse.Namespace) -> Space:
    gpu = args.gpu or ("this-machine" if args.profile is not None else "h100")
    measured = args.profile is not None
    return Space(
        gpus=args.gpus,
        prefill_gpus=gpus("--prefill-gpu", args.prefill_gpu or gpu),
        decode_gpus=gpus("--decode-gpu", args.decode_gpu or gpu),
        tps=_numbers("--tp", args.tp, (1,) if measured else (1, 2, 4, 8)),
        pps=_numbers("--pp", args.pp, (1,)),
        chunks=_numbers("--chunk", args.chunk, (512, 2048)),
        split=args.only != "colocated",
        colocated=args.only != "split",
        max_cost_per_hour=args.max_cost or float("inf"),
        max_power_w=args.max_power or float("inf"),
        full=args.rate is None,
    )


def _numbers(flag: str, text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if text is None:
        return default
    try:
        return tuple(sorted({count(one.strip()) for one in text.split(",")}))
    except argparse.ArgumentTypeError as error:
        raise ConfigError([f"{flag}: {error}"]) from None
