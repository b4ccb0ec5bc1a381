"""`pdserve plan` without --compat: search, say the answer, write the plan."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from deploy.arguments import check_output, check_report, write_output
from deploy.planning.answer import answer_line, more_lines, table, unit_of, what_if_lines
from deploy.planning.budget import budget_in_words, check_budget
from deploy.planning.caveats import caveats
from deploy.planning.compiling import tell_if_compiling
from deploy.planning.profile import FromProfile, profile_of
from deploy.planning.question import check_flags, check_sizes, listed, question_of, space_of
from deploy.planning.sizes import Sizes
from deploy.planning.subject import SAMPLE, more_room, serving_of, workload_of
from deploy.planning.validate import Validation
from deploy.stop_signals import sigterm_is_ctrl_c
from deploy.words import counted
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.search.answer import Outcome
from placement.search.build import Serving
from placement.search.candidate import Candidate
from placement.search.job import compiled
from placement.search.parallel import Closer, Processes, run_search
from placement.search.plan_file import plan_to_json
from placement.search.question import Question
from placement.search.scale import run_scaled, scaled_closer
from placement.search.search import Search
from placement.search.space import Space
from placement.search.whatif import AS_ASKED, CHANGES, WhatIf
from placement.workload.source import WorkloadSource


def run_plan(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 when no placement can serve within the targets."""
    check_flags(args)
    for flag, path in (("--output", args.output), ("--report", args.report)):
        if path is not None:
            check_output(path, flag)
    if problems := check_report(args, "output"):
        raise ConfigError(problems)
    profile = profile_of(args, mock=args.validate == "mock")
    question, space = question_of(args), space_of(args, profile)
    spec, source = workload_of(args.workload)
    serving = serving_of(args, source, profile)
    notes = check_sizes(args, space, serving.model)
    check_budget(args, space, serving)
    unit = unit_of((*space.prefill_gpus, *space.decode_gpus), serving)
    validation = None if args.validate is None else Validation.of(args, space, profile)
    with Processes(spec, source, args.processes) as processes, sigterm_is_ctrl_c():
        try:
            found = found_by(question, space, serving, source, processes, _changes(args), given=args.gpus is not None)
        except BrokenProcessPool:
            raise StartError(
                "a process of the search was killed, for want of memory? --processes 1 needs least"
            ) from None
    outcome, best = found.outcome, found.outcome.best
    answer = "\n".join([*_told(found, question, serving, profile, source, unit, budget_in_words(args)), *notes])
    print("\n".join([answer, *table(outcome, question)]))
    copies = 1 if outcome.scaled is None else outcome.scaled.copies
    for line in what_if_lines([one for one in found.what_if if one.change is not AS_ASKED], copies):
        print(line)
    if not found.complete:
        print("interrupted: not every what-if was looked at")
    _write(args, found, question, serving, answer, unit)
    if best is not None and validation is not None and outcome.complete and found.complete:
        validation.run(outcome, question, serving)
    return ExitCode.OK if best is not None else ExitCode.FAILED


def _told(
    found: Closer,
    question: Question,
    serving: Serving,
    profile: FromProfile | None,
    source: WorkloadSource,
    unit: str,
    within: str,
) -> list[str]:
    """The answer, what belongs beside it, and how far it may be believed."""
    best = found.outcome.best
    at_rate = None if best is None or best.goodput is None else best.goodput.at_rate
    requests = source.build(rate=1.0, num_requests=SAMPLE) if at_rate is None else at_rate.requests
    return [
        answer_line(found.outcome, question, unit, within) + ("" if found.outcome.answers else more_room(serving)),
        *more_lines(found.outcome, question, unit),
        *([] if best is None else _cores(best.candidate, serving, profile)),
        *caveats(profile, serving, [] if best is None else [best.candidate], requests),
    ]


def _cores(best: Candidate, serving: Serving, profile: FromProfile | None) -> list[str]:
    """What workers that were measured here stand for: `serve --plan` would start all of them on this machine."""
    if profile is None or profile.served is None:
        return []
    workers = best.replicas * sum(pool.workers for pool in best.pools)
    if serving.slowdown is not None:
        return [f"all {workers} workers share this machine's cores"] if workers > 1 else []
    if workers == 1:
        return []
    return [f"each of the {workers} workers has a machine like this one of its own; for one machine, --one-machine"]


def _changes(args: argparse.Namespace) -> Sequence[WhatIf]:
    return () if args.no_what_if else CHANGES


def found_by(
    question: Question,
    space: Space,
    serving: Serving,
    source: WorkloadSource,
    processes: Processes,
    changes: Sequence[WhatIf] = (),
    *,
    given: bool = True,
) -> Closer:
    """The search, and what follows from its answer. `given`: how many GPUs there are."""

    def searched(question: Question, space: Space) -> Outcome:
        search = Search(question, serving, source)
        try:
            search.screen(listed(space, serving.model))
        except KeyboardInterrupt:
            return search.outcome(complete=False)
        if search.screened:
            tell_if_compiling(*compiled(search.screened[0][0], serving, source))
        return run_search(search, processes, _Progress())

    def enlarged(part: Outcome, copies: int) -> Outcome:
        return run_scaled(part, copies, question, space, serving, processes)

    outcome = Sizes(question, space, searched, enlarged, given=given).find()
    if outcome.best is None or not outcome.complete:
        return Closer(outcome, (), True)
    moves = outcome.best.candidate.prefill is not None
    kept = [one for one in changes if moves or one.network == 1.0]
    return scaled_closer(outcome, question, serving, kept, processes)


def _write(
    args: argparse.Namespace, found: Closer, question: Question, serving: Serving, answer: str, unit: str
) -> None:
    """The plan and the report, where they are asked for."""
    outcome, what_if = found.outcome, found.what_if
    source = "the GPUs' data sheets" if unit == "GPU" else "what this machine multiplies and reads a second"
    basis = f"Step times are computed from {source}, with stated efficiencies; they were not measured."
    if args.profile is not None:
        basis = f"Step times are those of {args.profile}."
        basis += " They are its linear model's, which the mock engine keeps." if args.validate == "mock" else ""
    about = {
        "model": serving.model.name,
        "workload": args.workload,
        "gpus": args.gpus,
        "seed": question.seed,
        "step_times": basis,
    }
    if args.output is not None:
        plan = plan_to_json(outcome, question, serving, what_if, about)
        write_output(args.output, json.dumps(plan, indent=1) + "\n")
        print(f"plan: {args.output}")
    if args.report is not None:
        from placement.search.report import Wording, write_report  # matplotlib takes a while to import

        title = f"{serving.model.name}, {args.workload}" + (f", {counted(args.gpus, unit)}" if args.gpus else "")
        try:
            write_report(args.report, outcome, question, what_if, Wording(title, answer, basis, unit))
        except OSError as error:
            raise StartError(f"--report is {args.report}; {error.strerror}", ExitCode.OUTPUT) from None
        print(f"report: {args.report}")


class _Progress:
    """One line on standard error, where that is a terminal."""

    def __call__(self, search: Search, running: int) -> None:
        if not sys.stderr.isatty():
            return
        best = search.best
        said = "" if best is None else f", best so far {best.rate:.3g}/s: {best.candidate}"
        end = "\n" if not running else "\r"
        print(
            f"\x1b[2K{search.num_answered} of {search.num_candidates} placements{said}",
            end=end,
            file=sys.stderr,
            flush=True,
        )
