"""What was found, in sentences: the answer, how sure it is, whether to disaggregate, what else was looked at."""

from __future__ import annotations

from collections.abc import Sequence

from placement.search.candidate import Candidate
from placement.search.goodput import Attainment
from placement.search.search import Answer, Outcome, Question
from placement.search.whatif import Consequence

_SHOWN = 8


def answer_line(outcome: Outcome, question: Question) -> str:
    """One sentence."""
    slo = question.slo
    target = f"TTFT {slo.ttft_s:g} s and TPOT {slo.tpot_s:g} s for {100 * slo.attainment:g} %"
    best = outcome.best
    if best is None:
        reasons = [answer.reason for answer in outcome.answers[:1]] or list(outcome.unfit[:1])
        why = f": {reasons[0]}" if reasons and outcome.complete else ""
        carry = "" if question.rate is None else f" of {question.rate:g} requests/s"
        found = (
            "no placement within the budget" if outcome.complete else "interrupted before any placement was seen that"
        )
        return f"{found} meets {target}{carry}{why}"
    candidate, goodput = best.candidate, best.goodput
    assert goodput is not None
    if question.rate is not None:
        return (
            f"{candidate}: carries {question.rate:g} requests/s with {target}, on {price(candidate)}; "
            f"bound by {best.reason}"
        )
    return (
        f"{candidate}: {goodput.rate:.3g} requests/s ({goodput.rate / candidate.gpus:.3g} per GPU) with {target}; "
        f"95 % confidence {goodput.low:.3g} to {goodput.high:.3g}; bound by {best.reason}"
    )


def price(candidate: Candidate) -> str:
    """GPUs, and dollars and watts where all of its types have them."""
    gpus = {pool.gpu for pool in candidate.pools}
    said = [f"{candidate.gpus} GPU{'s' if candidate.gpus > 1 else ''}"]
    if all(gpu.cost_per_hour for gpu in gpus):
        said.append(f"{candidate.cost_per_hour:,.2f} $/h")
    if all(gpu.power_w for gpu in gpus):
        said.append(f"{candidate.power_w:,.0f} W")
    return ", ".join(said)


def more_lines(outcome: Outcome, question: Question) -> list[str]:
    """What belongs beside the answer."""
    if question.rate is not None:
        return _how_sure(outcome, question, question.rate)
    other = _other_kind(outcome)
    return [] if other is None else [other]


def _how_sure(outcome: Outcome, question: Question, rate: float) -> list[str]:
    """Of a rate that was asked for: is it met by chance, would less do, would a little more be sure?"""
    best, target = outcome.best, question.slo.attainment
    lines = []
    if best is not None and best.goodput is not None:
        goodput, sure = best.goodput, best.surely_good(target)
        decided = "met with that confidence" if sure else "TOO CLOSE TO CALL"
        lines.append(f"at {rate:g} requests/s {share(goodput.probes[0])} meet both targets: {decided}")
        if goodput.most is not None:
            lines.append(
                f"at most it carries {goodput.most:.3g} requests/s; 95 % confidence {goodput.low:.3g} to "
                f"{goodput.high:.3g}"
            )
        if not sure and outcome.sure is not None and outcome.sure.goodput is not None:
            surer = outcome.sure
            assert surer.goodput is not None
            lines.append(
                f"sure to carry it: {surer.candidate}, on {price(surer.candidate)}: {share(surer.goodput.probes[0])}"
            )
    most = float("inf") if best is None else question.price.of(best.candidate)
    maybe = [one for one in outcome.answers if one.maybe_good(target) and question.price.of(one.candidate) < most]
    for answer in sorted(maybe, key=lambda one: question.price.of(one.candidate))[:1]:
        assert answer.goodput is not None
        lines.append(
            f"too close to call: {answer.candidate}, on {price(answer.candidate)}: {share(answer.goodput.probes[0])}"
        )
    return lines


def share(found: Attainment) -> str:
    """`95.1 % of the requests (95 % confidence 94.3 to 95.9)`."""
    low, high = max(0.0, found.share - found.half_width), min(1.0, found.share + found.half_width)
    return f"{100 * found.share:.1f} % of the requests (95 % confidence {100 * low:.1f} to {100 * high:.1f})"


def _other_kind(outcome: Outcome) -> str | None:
    """Whether to disaggregate: the best of the kind that was not chosen; None where there is no such kind."""
    best = outcome.best
    if best is None or best.goodput is None:
        return None
    colocated = best.candidate.prefill is None
    others = [one for one in outcome.answers if (one.candidate.prefill is None) is not colocated]
    if not others:
        return None
    kind = "split" if colocated else "colocated"
    found = max(others, key=lambda one: one.rate)
    if found.goodput is None or found.rate <= 0.0:
        return f"no {kind} placement serves more than {max(ceiling(one) for one in others):.3g} requests/s"
    close = "; too close to call" if found.goodput.high > best.goodput.low else ""
    return f"best {kind}: {found.candidate}: {found.rate:.3g} requests/s, {found.rate / best.rate - 1:+.0%}{close}"


def ceiling(answer: Answer) -> float:
    """Requests per second that it does not reach, by simulation or by its bound."""
    if answer.goodput is None or answer.rate > 0.0:
        return answer.bounds.rate
    return min((probe.rate for probe in answer.goodput.probes), default=answer.bounds.rate)


def table(outcome: Outcome, question: Question) -> list[str]:
    """The best placements, each with what binds it."""
    rows = [f"{len(outcome.answers)} placements looked at, {len(outcome.unfit)} do not fit in memory"
            + ("" if outcome.complete else "; interrupted, not all were simulated")]  # fmt: skip
    for answer in outcome.answers[:_SHOWN]:
        rows.append(f"  {_figure(answer, question):>13}  {answer.candidate}  ({answer.reason})")
    return rows


def _figure(answer: Answer, question: Question) -> str:
    if answer.goodput is None:
        return "not simulated"
    if question.rate is not None:
        most = "up to " if answer.rate == 0.0 and answer.goodput.probes[0].half_width == 0.0 else ""
        return f"{most}{100 * answer.goodput.probes[0].share:.1f} %"
    return f"{answer.rate:.3g}/s" if answer.rate > 0.0 else f"under {ceiling(answer):.3g}/s"


def what_if_lines(what_if: Sequence[Consequence]) -> list[str]:
    """One for each change."""
    return [f"  if {one.change.name}: {one.rate:.3g} requests/s, bound by {one.binding}" for one in what_if]
