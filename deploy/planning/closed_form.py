"""`pdserve plan --bounds`: what arithmetic, memory and links allow at most; nothing is simulated."""

from __future__ import annotations

import argparse

from deploy.planning.budget import check_budget
from deploy.planning.caveats import caveats
from deploy.planning.profile import profile_of
from deploy.planning.question import check_flags, check_sizes, listed, question_of, space_of
from deploy.planning.subject import SAMPLE, serving_of, workload_of
from pdserve.exit import ExitCode
from placement.search.answer import Answer
from placement.search.search import Search

_SHOWN = 12


def run_bounds(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 when nothing can serve."""
    check_flags(args)
    profile = profile_of(args)
    question, space = question_of(args), space_of(args, profile)
    _, source = workload_of(args.workload)
    serving = serving_of(args, source, profile)
    notes = check_sizes(args, space, serving.model)
    check_budget(args, space, serving)
    search = Search(question, serving, source)
    search.screen(listed(space, serving.model))
    outcome = search.outcome(complete=False)
    able = [Answer(candidate, bounds, None, "") for candidate, bounds in search.screened]
    print(
        f"{search.num_candidates} placements, {len(outcome.unfit)} do not fit in memory, {len(able)} may serve; bounds:"
    )
    for answer in able[:_SHOWN]:
        named = {name: rate for name, rate in answer.bounds.by_resource.items() if 0.0 < rate < float("inf")}
        parts = ", ".join(f"{name} {rate:.3g}" for name, rate in sorted(named.items(), key=lambda one: one[1]))
        print(f"  at most {answer.bounds.rate:8.3g}/s  {answer.candidate}  ({parts})")
    if not able:
        for answer in outcome.answers[:3]:
            print(f"  {answer.candidate}: {answer.reason}")
        print("\n".join(f"  {why}" for why in list(dict.fromkeys(outcome.unfit))[:3]))
    shown = [answer.candidate for answer in able[:_SHOWN]]
    for line in [*caveats(profile, serving, shown, source.build(rate=1.0, num_requests=SAMPLE)), *notes]:
        print(line)
    return ExitCode.OK if able else ExitCode.FAILED
