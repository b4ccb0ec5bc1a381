"""`pdserve plan --live URL`: which split of a running cluster's workers would serve most of what it serves."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace

from deploy.arguments import check_output, refuse, write_output
from deploy.planning.caveats import caveats
from deploy.planning.flags import PLAN, SHARED
from deploy.planning.live_answer import Told, told
from deploy.planning.live_fetch import Router, router_of
from deploy.planning.live_state import LiveState, live_state
from deploy.planning.live_subject import Live, differing, live_of
from deploy.planning.plan import found_by
from deploy.planning.profile import FromProfile, profile_of
from deploy.planning.question import QUICK, check_attainment
from deploy.stop_signals import sigterm_is_ctrl_c
from deploy.tls_arguments import refuse_tls, tls_of
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.search.answer import Answer
from placement.search.bounds import Screen, Slo
from placement.search.job import confirmed, do_job
from placement.search.parallel import Closer, Processes
from placement.search.plan_file import plan_to_json
from placement.search.question import Job, Question
from placement.search.trace import sample_of

MODE = "plan --live"
_TAKEN = {"gpus", "only", "attainment", "seed"}  # of the flags of a plan
_REFUSED = (
    *(name for name in (*SHARED, *PLAN) if name not in _TAKEN),
    "model", "affinity", "gpus_per_node", "nodes", "backend", "requests", "max_rate_per_gpu", "resolution",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Replanned:
    """One look at a cluster."""

    state: LiveState
    live: Live
    question: Question
    found: Closer
    present: Answer
    cpu_s: float  # that the search took
    measured: bool  # step times are the workers' own

    @property
    def told(self) -> Told:
        outcome, free_link = self.found.outcome, self.live.free_link
        return Told(self.state, self.question, outcome, self.present, self.measured, free_link)


def run_live(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 when no split can serve within the targets. Errors: StartError, ConfigError."""
    refuse(args, _REFUSED, MODE)
    if args.every is not None:
        refuse(args, ("output",), f"{MODE} --every")
    if args.output is not None:
        check_output(args.output)
    check_attainment(args)
    router = _router(args)
    profile = profile_of(args)
    with sigterm_is_ctrl_c():
        return _once(args, router, profile) if args.every is None else _again(args, router, profile)


def _router(args: argparse.Namespace) -> Router:
    if not args.live.lower().startswith("https://"):
        refuse_tls(args, args.live, "say https://")
        return router_of(args.live, args.api_key, None)
    return router_of(args.live, args.api_key, tls_of(args))


def _once(args: argparse.Namespace, router: Router, profile: FromProfile | None) -> int:
    """The whole answer."""
    seen = _replanned(args, router, profile)
    steps = f"{args.profile}" if args.profile is not None else "what the workers measured of their own steps"
    best = seen.found.outcome.best
    asked = [] if best is None else [best.candidate]
    doubts = caveats(profile, seen.live.serving, asked, seen.state.recent.workload)
    answer = [
        *told(seen.told),
        *differing(seen.state),
        *doubts,
        f"step times: {steps}; the search took {seen.cpu_s:.2f} s of CPU",
    ]
    print("\n".join(answer))
    if args.output is not None:
        about = {
            "model": seen.state.model, "workload": f"the last {seen.state.recent.window_s:.0f} s of {router.name}",
            "gpus": seen.live.space.gpus, "seed": seen.question.seed, "step_times": f"Step times are {steps}.",
        }  # fmt: skip
        plan = plan_to_json(seen.found.outcome, seen.question, seen.live.serving, (), about)
        write_output(args.output, json.dumps(plan, indent=1) + "\n")
        print(f"plan: {args.output}")
    return ExitCode.OK if best is not None else ExitCode.FAILED


def _again(args: argparse.Namespace, router: Router, profile: FromProfile | None) -> int:
    """A line every so often until Ctrl-C; what fails the first time is an error, a router that goes away a line."""
    answered = False
    try:
        while True:
            began_s = time.monotonic()
            try:
                seen = _replanned(args, router, profile)
                if not (seen.found.complete and seen.found.outcome.complete):
                    return ExitCode.OK  # Ctrl-C came while it searched
                line, answered = seen.told.line, True
            except (StartError, ConfigError) as error:
                if not answered:
                    raise
                line = str(error)
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
            time.sleep(max(0.0, args.every - (time.monotonic() - began_s)))
    except KeyboardInterrupt:
        return ExitCode.OK


def _replanned(args: argparse.Namespace, router: Router, profile: FromProfile | None) -> Replanned:
    """Ask, and search in this process: others would take longer to start than all of it takes."""
    given = router.ask()
    try:
        state = live_state(given)
    except ValueError as error:
        raise StartError(f"--live is {router.name}; what it says cannot be: {error}") from None
    slo = _slo(args, state, router)
    live = live_of(state, router.name, args.gpus, args.only, profile)
    question = Question(slo, effort=QUICK, seed=args.seed or 0)
    began_s = time.process_time()
    with Processes(live.source.spec, live.source, 1) as processes:
        found = found_by(question, live.space, live.serving, live.source, processes)
    present = _present(live, question, found)
    cpu_s = time.process_time() - began_s
    return Replanned(state, live, question, _with(found, live, present), present, cpu_s, profile is None)


def _with(found: Closer, live: Live, present: Answer) -> Closer:
    """The search's answers with that of the present placement, of which the search gave up, or did not ask at all.

    By the second look it may be the best, where it is one that was asked for: then it is, and is what -o writes.
    """
    outcome, best = found.outcome, found.outcome.best
    others = [one for one in outcome.answers if one.candidate != present.candidate]
    if live.allows_present and present.rate > 0.0 and (best is None or present.rate >= best.rate):
        best = present
    if best is present or len(others) < len(outcome.answers):
        others.append(present)
    answers = tuple(sorted(others, key=lambda one: -one.rate))
    return replace(found, outcome=replace(outcome, best=best, answers=answers))


def _present(live: Live, question: Question, found: Closer) -> Answer:
    """What the placement that is there serves: the search gives up a placement that cannot win."""
    best = found.outcome.best
    if best is not None and best.candidate == live.present:
        return best
    bounds = Screen(live.serving, question.slo, sample_of(live.source, question.seed))(live.present)
    if bounds.rate <= 0.0:
        return Answer(live.present, bounds, None, f"{bounds.binding} allows none")
    answer = do_job(Job(live.present, bounds, 0.0), question, live.serving, live.source)
    return confirmed(answer, question, live.serving, live.source)


def _slo(args: argparse.Namespace, state: LiveState, router: Router) -> Slo:
    """The flags', else those of the router's default class. Errors: ConfigError."""
    ttft_s, tpot_s = args.slo_ttft or state.ttft_s, args.slo_tpot or state.tpot_s
    missing = [name for name, value in (("--slo-ttft", ttft_s), ("--slo-tpot", tpot_s)) if value is None]
    if ttft_s is None or tpot_s is None:
        raise ConfigError([f"{one} is missing; {router.name} serves without that target" for one in missing])
    return Slo(ttft_s, tpot_s, args.attainment or 0.9)
