"""`pdserve plan` without --compat: search, say the answer, write the plan."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace

from deploy.arguments import check_output, write_output
from deploy.planning.question import MOST_GPUS, check_flags, listed, question_of, space_of
from deploy.planning.subject import serving_of, workload_of
from pdserve.exit import ExitCode
from placement.search.candidate import Candidate, Pool
from placement.search.parallel import run_search
from placement.search.plan_file import plan_to_json
from placement.search.search import Outcome, Price, Question, Search
from placement.search.space import Space
from placement.search.whatif import CHANGES, Consequence, consequence

_SHOWN = 8


def run_plan(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 when no placement can serve within the targets."""
    check_flags(args)
    for flag, path in (("--output", args.output), ("--report", args.report)):
        if path is not None:
            check_output(path, flag)
    question, space = question_of(args), space_of(args)
    spec, source = workload_of(args.workload)
    serving = serving_of(args, source)

    def searched(gpus: int) -> Outcome:
        search = Search(question, serving, source)
        search.screen(listed(replace(space, gpus=gpus), serving.model))
        return run_search(search, spec, args.processes, _Progress())

    outcome = (
        searched(space.gpus) if args.gpus is not None or args.rate is None else _growing(searched, question, space)
    )
    best = outcome.best
    what_if: list[Consequence] = []
    if best is not None and outcome.complete:
        moves = best.candidate.prefill is not None
        changes = [change for change in CHANGES if moves or change.network == 1.0]
        what_if = [consequence(change, best.candidate, question, serving, source) for change in changes]
    answer = answer_line(outcome, question)
    print(answer)
    if (other := other_kind(outcome, question)) is not None:
        print(other)
    print("\n".join(_table(outcome)))
    if what_if and question.rate is not None:
        print(f"  at most it carries {what_if[0].rate:.3g} requests/s, bound by {what_if[0].binding}")
    for one in what_if[1:]:
        print(f"  if {one.change.name}: {one.rate:.3g} requests/s, bound by {one.binding}")
    basis = "Step times are computed from the GPUs' data sheets with stated efficiencies; they were not measured."
    if args.profile is not None:
        basis = f"Step times are those of {args.profile}."
    about = {
        "model": serving.model.name,
        "workload": args.workload,
        "gpus": args.gpus,
        "seed": question.seed,
        "step_times": basis,
    }
    if args.output is not None:
        plan = plan_to_json(outcome, question, what_if, about)
        write_output(args.output, json.dumps(plan, indent=1) + "\n")
        print(f"plan: {args.output}")
    if args.report is not None:
        from placement.search.report import html_report  # matplotlib takes a while to import

        title = f"{serving.model.name}, {args.workload}" + (f", {args.gpus} GPUs" if args.gpus else "")
        write_output(args.report, html_report(outcome, question, what_if, title, answer, basis), "--report")
        print(f"report: {args.report}")
    return ExitCode.OK if best is not None else ExitCode.FAILED


def _growing(searched: Callable[[int], Outcome], question: Question, space: Space) -> Outcome:
    """The least for a rate where no number of GPUs is given: twice as many until it is carried."""
    gpus = 8
    outcome = searched(gpus)
    while outcome.best is None and outcome.complete and gpus < MOST_GPUS:
        gpus *= 2
        outcome = searched(gpus)
    if outcome.best is None or not outcome.complete or question.price is Price.GPUS:
        return outcome
    # Of cheap GPUs more than that may still cost less.
    least = min(
        question.price.of(Candidate(None, Pool(gpu, 1), 1)) for gpu in (*space.prefill_gpus, *space.decode_gpus)
    )
    affordable = min(MOST_GPUS, int(question.price.of(outcome.best.candidate) / least)) if least else MOST_GPUS
    return searched(affordable) if affordable > gpus else outcome


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


def other_kind(outcome: Outcome, question: Question) -> str | None:
    """Whether to disaggregate: the best of the kind that was not chosen; None where there is no such kind."""
    best = outcome.best
    if best is None or question.rate is not None:
        return None
    colocated = best.candidate.prefill is None
    others = [one for one in outcome.answers if (one.candidate.prefill is None) is not colocated]
    if not others:
        return None
    kind = "split" if colocated else "colocated"
    found = max(others, key=lambda one: one.rate)
    if found.rate > 0.0:
        return f"best {kind}: {found.candidate}: {found.rate:.3g} requests/s, {found.rate / best.rate - 1:+.0%}"
    return f"no {kind} placement serves more than {max(one.bounds.rate for one in others):.3g} requests/s"


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
