"""What is told of a running cluster: what comes, what it carries, what another split would, and whether to change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deploy.planning.answer import answer_line, confidence, figure, more_lines, table
from deploy.planning.live_state import LiveState, Recent
from deploy.words import counted
from placement.search.answer import Answer, Outcome
from placement.search.question import Question
from scheduling.routing import Role

UNIT = "worker"
_MUCH_CACHED = 0.1  # of the prompts' tokens
_MUCH_RUNNING = 0.1  # of those that came, or of the window by the oldest: few long ones are most of the tokens
_UNEVEN = 1.25  # times the mean rate
_MINUTE_S = 60.0
_ROOMY = 0.7  # of what is carried: as long as no more comes, nothing needs to change
_FAR_BEYOND = 3.0  # times what came: steps as large were not seen
_FEW_SEQUENCES = 2.0  # in a step: base and price of a sequence cannot be told apart


@dataclass(frozen=True, slots=True)
class Told:
    """All that an answer is made of."""

    state: LiveState
    question: Question
    outcome: Outcome
    present: Answer
    measured: bool  # step times are the workers' own
    free_link: bool  # nobody knows how long transfers take

    @property
    def line(self) -> str:
        """The answer in one line."""
        best = self.outcome.best
        comes = f"{figure(self.state.recent.workload.rate)} requests/s come"
        if best is None:
            return f"{comes}; no split of the workers meets the targets"
        return f"{comes}, {_carries(self.present)} now; {_verdict(self, best)}"


def told(known: Told) -> list[str]:
    """A line each."""
    outcome, question = known.outcome, known.question
    lines = [*_arrives(known.state.recent), *_assumed(known)]
    lines.append(f"now: {known.present.candidate}: {_carried(known.present)}")
    if outcome.best is None:
        return [*lines, answer_line(outcome, question, UNIT, ""), *table(outcome, question)]
    lines.append(f"best: {answer_line(outcome, question, UNIT, '')}")
    lines += more_lines(outcome, question, UNIT)
    lines += _doubts(known, outcome.best)
    return [*lines, *table(outcome, question), _verdict(known, outcome.best)]


def _arrives(recent: Recent) -> list[str]:
    requests = recent.workload
    lines = [
        f"{counted(len(requests), 'request')} of the last {recent.window_s:.0f} s: {figure(requests.rate)} a second "
        f"over {requests.duration_s:.0f} s, prompts of {requests.prompt_tokens.mean():,.0f} tokens and outputs of "
        f"{requests.output_tokens.mean():,.0f}"
    ]
    if recent.paused_s:
        lines.append(f"pauses of {recent.paused_s:.0f} s together, when nothing came, are left out")
    if recent.num_unknown:
        more = "or more others" if recent.more_unknown else "more"
        lines.append(f"{recent.num_unknown:,} {more} were refused or failed: how long they would be is not known")
    if recent.num_running > _MUCH_RUNNING * len(requests) or recent.oldest_running_s > _MUCH_RUNNING * recent.window_s:
        lines.append(
            f"{counted(recent.num_running, 'request')} still running, the oldest for {recent.oldest_running_s:.0f} s: "
            f"of {recent.window_s:.0f} s that is much, so outputs may be told too short"
        )
    busiest = _busiest(recent)
    if busiest > _UNEVEN * requests.rate + 3.0 * math.sqrt(requests.rate / _MINUTE_S):  # beyond what chance does
        lines.append(
            f"they came unevenly, up to {figure(busiest)} a second over a minute; rates below are means of such traffic"
        )
    share = recent.cached_share
    if share > _MUCH_CACHED:
        lines.append(
            f"{share:.0%} of the prompts' tokens were found in caches; what they share is not known, so prompts are "
            "taken as new: prefill is asked for more than it is"
        )
    return lines


def _busiest(recent: Recent) -> float:
    """Requests a second of the minute with the most; 0 where there was no minute."""
    arrival_s = recent.workload.arrival_s
    if recent.workload.duration_s < 2 * _MINUTE_S:
        return 0.0
    return float(np.bincount((arrival_s / _MINUTE_S).astype(int)).max() / _MINUTE_S)


def _assumed(known: Told) -> list[str]:
    """What the cluster could not say."""
    state = known.state
    lines = []
    if state.num_down:
        lines.append(f"{counted(state.num_down, 'worker')} down: left out")
    if known.free_link:
        lines.append("no KV has moved yet: transfers are taken to take no time")
    if known.measured and 0.0 < (largest := _sequences(state)) < _FEW_SEQUENCES:
        lines.append(
            f"decode workers took {largest:.2g} sequences a step on average: what more take is a guess, mostly too long"
        )
    return lines


def _doubts(known: Told, best: Answer) -> list[str]:
    """Where the workers' own steps say little of such a load."""
    if not known.measured:
        return []
    state, lines = known.state, []
    comes = state.recent.workload.rate
    if best.rate > _FAR_BEYOND * comes:
        lines.append(
            f"that is {best.rate / comes:.0f} times what came: steps of such a load were not seen, ask again under more"
        )
    if len(state.workers) > 1 and all(worker.device == "cpu" for worker in state.workers):
        lines.append(
            "workers compute on CPUs: where they share a machine's cores with one another, the router or the clients, "
            "more load makes all slower, which is not in these numbers: they may be several times too high"
        )
    return lines


def _sequences(state: LiveState) -> float:
    """Of a step, on the decode worker that took most."""
    return max((worker.mean_sequences or 0.0 for worker in state.of(Role.DECODE)), default=0.0)


def _carries(answer: Answer) -> str:
    return f"{figure(answer.rate)}/s carried" if answer.rate > 0.0 else "none within the targets"


def _carried(answer: Answer) -> str:
    if answer.goodput is None or answer.rate <= 0.0:
        return f"under {figure(answer.ceiling)} requests/s within the targets; {answer.reason}"
    known = confidence(answer.goodput)
    return f"at most {figure(answer.rate)} requests/s within the targets; {known}; bound by {answer.reason}"


def _verdict(known: Told, best: Answer) -> str:
    """Whether it is worth a change: not where chance may have it, nor where far less comes than is carried."""
    present, comes = known.present, known.state.recent.workload.rate
    if best.candidate == present.candidate:
        return "no change: what is there is the best"
    if present.goodput is None or present.rate <= 0.0:
        return f"worth a change: {best.candidate}, from next to nothing"
    assert best.goodput is not None
    change = f"{best.candidate}, {best.rate / present.rate - 1.0:+.0%}"
    if best.goodput.low > present.goodput.high:
        if comes < _ROOMY * present.goodput.low:
            return f"no need to change: what comes is {comes / present.rate:.0%} of what is carried now; {change}"
        return f"worth a change: {change}"
    why = ", which is within the confidence of both" if best.rate > present.rate else ""
    return f"not worth a change: {change}{why}"
