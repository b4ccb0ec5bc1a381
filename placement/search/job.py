"""One candidate, simulated: what a search hands out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from placement.search.answer import Answer, Outcome
from placement.search.binding import binding_of, utilisation_of
from placement.search.bounds import Bounds, Slo
from placement.search.bracket import Attainment, Bracket, Verdict
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate
from placement.search.goodput import Effort, Goodput, confirm, find_goodput, look, look_shortly, saturation_of
from placement.search.lasting import SEED, last, lasting
from placement.search.question import Job, Question
from placement.search.search import Search
from placement.search.steady import Run
from placement.search.trace import judged_of
from placement.simulator.cluster import ClusterSpec
from placement.simulator.fast.run import compiled_parts, simulate_fast, unsupported
from placement.simulator.give_up import GiveUp
from placement.simulator.requests import requests_of
from placement.simulator.results import RequestColumns, SimulationResult
from placement.simulator.simulate import simulate
from placement.workload.source import WorkloadSource
from placement.workload.transform import clipped, sped_up
from placement.workload.workload import Workload

_FEW = 1000  # requests: enough to see of what kind they are


@dataclass(frozen=True, slots=True)
class Simulated:
    """A cluster, to be run: compiled where that models what is asked, else the real code; their answers are equal."""

    cluster: ClusterSpec

    def __call__(self, workload: Workload) -> RequestColumns:
        return self.run(workload).requests

    def run(self, workload: Workload, give_up: GiveUp | None = None) -> SimulationResult:
        """Only the compiled simulator ends where it gives up; the other carries on, and comes to the same verdict."""
        if not unsupported(self.cluster, workload):
            return simulate_fast(self.cluster, workload, give_up)
        result = simulate(self.cluster, requests_of(workload))
        return result if give_up is None or give_up.kept(result.requests) else replace(result, complete=False)


def run_of(candidate: Candidate, cluster: ClusterSpec, source: WorkloadSource, seed: int) -> Run:
    """A candidate as a function of rate and number of requests; common random numbers over all candidates.

    Of replicas one is run, with its share of the rate.
    """
    simulated = Simulated(cluster)
    context = min(worker.scheduler.max_model_len for worker in cluster.workers)

    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        return simulated.run(traffic(source, rate / candidate.replicas, num_requests, seed, context), give_up)

    return run


def compiled(
    candidate: Candidate, serving: Serving, source: WorkloadSource
) -> tuple[Callable[..., object], ...]:  # fmt: skip
    """What the compiled simulator runs it with; empty where only the real code can, which takes a thousand times as
    long."""
    cluster = cluster_of(candidate, serving)
    context = min(worker.scheduler.max_model_len for worker in cluster.workers)
    sample = traffic(source, 1.0, _FEW, 0, context)
    return () if unsupported(cluster, sample) else compiled_parts(cluster, sample)


def traffic(source: WorkloadSource, rate: float, num_requests: int, seed: int, context: int | None = None) -> Workload:
    """Requests at exactly that mean rate: of 600 drawn, the mean is 4 % off, and so would be the goodput.

    With a `context`, what does not fit in is cut: of hundreds of thousands drawn a few are longer than all of which
    the context was taken, and the compiled simulator takes none.
    """
    drawn = source.build(rate=rate, num_requests=num_requests, seed=seed)
    if context is not None and int(drawn.prompt_tokens.max()) >= context:
        drawn = clipped(drawn, context - 1, context)
    return sped_up(drawn, rate * float(drawn.arrival_s[-1]) / len(drawn)) if drawn.arrival_s[-1] > 0.0 else drawn


def do_job(job: Job, question: Question, serving: Serving, source: WorkloadSource) -> Answer:
    """Simulate one candidate for a question: a short run, or all that is asked."""
    candidate, bounds, slo = job.candidate, job.bounds, question.slo
    cluster = cluster_of(candidate, serving)
    run = run_of(candidate, cluster, source, question.seed)
    if job.rate is not None:
        return _one_look(job, *look_shortly(run, job.rate, slo, question.effort.shortest), slo)
    if job.last is not None:
        return _lasting(job, job.last, question, cluster, source)
    effort = deciding(question.effort, cluster, source)
    if question.rate is not None:
        found, result = look(run, question.rate, slo, effort)
        if found.verdict is not Verdict.GOOD:
            return _missed(job, (found,), result, slo)
        goodput = Goodput(question.rate, 0.0, bounds.rate, (found,), result)
        return answer_of(candidate, bounds, goodput, cluster, question)
    saturation = saturation_of(run, effort)
    if job.floor > 0.0 and job.hints:
        likely = Bracket(bounds.rate, slo.attainment, effort.tolerance, job.hints).requests_for(job.floor)
        found, result = look(run, job.floor, slo, effort, likely, saturation)
        if found.clearly_bad(slo.attainment):
            return _one_look(job, found, result, slo)
    goodput = find_goodput(
        run, slo, bounds.rate, effort, worth=lambda rate: rate > job.floor, hints=job.hints, saturation=saturation
    )
    return answer_of(candidate, bounds, goodput, cluster, question)


def deciding(effort: Effort, cluster: ClusterSpec, source: WorkloadSource) -> Effort:
    """Runs that decide take all requests of a trace: its first may be shorter than the others."""
    return effort.over(judged_of(source)) if _is_compiled(cluster, source) else effort


def _is_compiled(cluster: ClusterSpec, source: WorkloadSource) -> bool:
    """Else only the real code can run it, for which long runs are too many."""
    return not unsupported(cluster, source.build(rate=1.0, num_requests=1, seed=0))


def _lasting(job: Job, known: Goodput, question: Question, cluster: ClusterSpec, source: WorkloadSource) -> Answer:
    """What was found of the best, looked at for long and with other requests."""
    if not _is_compiled(cluster, source):
        return replace(answer_of(job.candidate, job.bounds, known, cluster, question), reason=job.reason)
    slo, effort = question.slo, deciding(question.effort, cluster, source)
    run = run_of(job.candidate, cluster, source, question.seed + SEED)
    if question.rate is None:
        found_to_last = lasting(run, slo, known, job.bounds.rate, effort)
        answer = answer_of(job.candidate, job.bounds, found_to_last, cluster, question)
        return answer if found_to_last.beyond is not None else replace(answer, reason=job.reason)
    found, result = last(run, question.rate, slo, effort, known)
    probes = (found, *known.probes)
    if found.verdict is not Verdict.GOOD:
        return _missed(job, probes, result, slo)
    answer = answer_of(job.candidate, job.bounds, replace(known, probes=probes, at_rate=result), cluster, question)
    return replace(answer, reason=job.reason)


def _missed(job: Job, probes: tuple[Attainment, ...], result: SimulationResult, slo: Slo) -> Answer:
    """A rate that was asked for is not carried."""
    why = binding_of(result, slo, job.bounds.binding, colocated=job.candidate.prefill is None)
    reason = f"misses at this rate: {why}"
    if probes[0].verdict is Verdict.UNSTABLE:
        reason = "does not keep up: the backlog grows"
    return Answer(job.candidate, job.bounds, Goodput(0.0, 0.0, probes[0].rate, probes), reason)


def _one_look(job: Job, found: Attainment, result: SimulationResult, slo: Slo) -> Answer:
    """What one run tells."""
    good = found.verdict is Verdict.GOOD
    why = binding_of(None if good else result, slo, job.bounds.binding, colocated=job.candidate.prefill is None)
    return Answer(job.candidate, job.bounds, Goodput(found.rate if good else 0.0, 0.0, job.bounds.rate, (found,)), why)


def confirmed(answer: Answer, question: Question, serving: Serving, source: WorkloadSource) -> Answer:
    """The same answer with both ends of its confidence interval; where a rate was asked for, that of the most."""
    if answer.goodput is None:
        return answer
    cluster = cluster_of(answer.candidate, serving)
    run = run_of(answer.candidate, cluster, source, question.seed)
    slo, upper, effort = question.slo, answer.bounds.rate, deciding(question.effort, cluster, source)
    if question.rate is None:
        return replace(answer, goodput=confirm(run, slo, answer.goodput, upper, effort))
    asked, found = answer.goodput.probes[:1], find_goodput(run, slo, upper, effort)
    if found.rate < question.rate:  # by chance: it was seen to carry the rate that was asked for
        found = replace(found, rate=question.rate, probes=(*asked, *found.probes))
    most = confirm(run, slo, found, upper, effort)
    known = replace(answer.goodput, low=most.low, high=most.high, probes=(*asked, *most.probes), most=most.rate)
    why = binding_of(most.beyond, slo, answer.bounds.binding, colocated=answer.candidate.prefill is None)
    return replace(answer, goodput=known, reason=why)


def answer_of(
    candidate: Candidate, bounds: Bounds, goodput: Goodput, cluster: ClusterSpec, question: Question
) -> Answer:
    why = binding_of(goodput.beyond, question.slo, bounds.binding, colocated=candidate.prefill is None)
    used = None if goodput.at_rate is None else utilisation_of(goodput.at_rate, cluster)
    return Answer(candidate, bounds, replace(goodput, beyond=None), why, used)


def search(search: Search) -> Outcome:
    """Carry out a screened search in this process."""
    for job in search.jobs():
        assert job is not None, "nothing is under way that could be waited for"
        search.take(do_job(job, search.question, search.serving, search.source))
    return search.outcome(complete=True)
