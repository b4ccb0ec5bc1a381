"""What was found, in sentences: the answer, how sure it is, whether to disaggregate, what else was looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploy.planning.profile import THIS_MACHINE
from deploy.words import counted
from placement.hardware.catalogue import GpuType
from placement.search.answer import Answer, Outcome, Scaled
from placement.search.bracket import Attainment
from placement.search.build import Serving
from placement.search.candidate import Candidate
from placement.search.goodput import Effort, Goodput
from placement.search.question import Question
from placement.search.whatif import Consequence

_SHOWN = 8


def unit_of(types: Iterable[GpuType], serving: Serving) -> str:
    """What one of them is called: without any GPU a machine, or a worker where all share one machine."""
    if {gpu.name for gpu in types} != {THIS_MACHINE}:
        return "GPU"
    return "machine" if serving.slowdown is None else "worker"


def answer_line(outcome: Outcome, question: Question, unit: str, within: str) -> str:
    """One sentence; `within`: what limits placements, as the user said it."""
    slo = question.slo
    target = f"TTFT {slo.ttft_s:g} s and TPOT {slo.tpot_s:g} s for {100 * slo.attainment:g} %"
    best = outcome.best
    if best is None:
        reasons = [answer.reason for answer in outcome.answers[:1]] or list(outcome.unfit[:1])
        why = f": {reasons[0]}" if reasons and outcome.complete else ""
        carry = "" if question.rate is None else f" of {figure(question.rate)} requests/s"
        found = f"no placement{' within ' * bool(within)}{within}"
        if not outcome.complete:
            found = "interrupted before any placement was seen that"
        return f"{found} meets {target}{carry}{why}"
    candidate, goodput = best.candidate, best.goodput
    assert goodput is not None
    if question.rate is not None:
        return (
            f"{candidate}: carries {figure(question.rate)} requests/s with {target}, on {price(candidate, unit)}; "
            f"bound by {best.reason}"
        )
    each = figure(goodput.rate / candidate.gpus)
    return (
        f"{candidate}: {figure(goodput.rate)} requests/s ({each} per {unit}) with {target}; "
        f"{confidence(goodput)}; bound by {best.reason}"
    )


def confidence(goodput: Goodput) -> str:
    """How surely a rate is known."""
    return f"95 % confidence {figure(goodput.low)} to {figure(goodput.high)}"


def figure(rate: float) -> str:
    """Three digits; large ones whole, with commas."""
    return f"{rate:,.0f}" if rate >= 1000.0 else f"{rate:.3g}"


def price(candidate: Candidate, unit: str) -> str:
    """GPUs or machines, and dollars and watts where all of its types have them."""
    gpus = {pool.gpu for pool in candidate.pools}
    said = [counted(candidate.gpus, unit)]
    if all(gpu.cost_per_hour for gpu in gpus):
        said.append(f"{candidate.cost_per_hour:,.2f} $/h")
    if all(gpu.power_w for gpu in gpus):
        said.append(f"{candidate.power_w:,.0f} W")
    return ", ".join(said)


def more_lines(outcome: Outcome, question: Question, unit: str) -> list[str]:
    """What belongs beside the answer."""
    scaled = [] if outcome.scaled is None else [_scaled_line(outcome.scaled, question)]
    scaled += _trace_lines(outcome if outcome.scaled is None else outcome.scaled.part)
    if question.rate is not None:
        return _how_sure(outcome, question, question.rate, unit) + scaled
    other = _other_kind(outcome)
    return ([] if other is None else [other]) + scaled


def _trace_lines(outcome: Outcome) -> list[str]:
    """Where requests of a trace were left out, which may be longer than those that were not."""
    if outcome.best is None or outcome.best.goodput is None:
        return []
    recorded, judged = outcome.num_recorded, outcome.num_judged
    most = max((one.num_requests for one in outcome.best.goodput.probes), default=0)
    deciding = Effort().over(judged).whole
    if most < min(recorded, deciding):  # interrupted, or too slow to take as many
        said = f"the trace has {recorded:,} requests, of which the longest run took the first {most:,} only"
    elif judged < recorded:
        last = "all" if most >= recorded else f"the first {most:,}"
        said = (
            f"the trace has {recorded:,} requests: placements and what-ifs are judged by {judged:,} of the first "
            f"{deciding:,}, and only the answer by {last}"
        )
    else:
        return []
    return [f"{said}; resample=yes in --workload draws from all over it, 50 in a row, which evens out surges"]


def _scaled_line(scaled: Scaled, question: Question) -> str:
    """What was simulated of a cluster too large to search, and what was only multiplied."""
    part = scaled.part.sure or scaled.part.best
    load = "budget" if question.rate is None else f"load, {figure(question.rate / scaled.copies)} requests/s"
    found = "none serves" if part is None else f"best {part.candidate}"
    said = f"scaled: the search was for 1/{scaled.copies} of the {load} ({found})"
    if part is None:
        return said
    if scaled.num_joined or scaled.num_whole:
        joined = (
            f"{scaled.num_joined} simulations of several such parts as one cluster and " if scaled.num_joined else ""
        )
        return f"{said}; then {joined}{scaled.num_whole} of the whole"
    return f"{said}; the whole was not simulated: it is that part, {scaled.copies} times, each with its own requests"


def _how_sure(outcome: Outcome, question: Question, rate: float, unit: str) -> list[str]:
    """Of a rate that was asked for: is it met by chance, would less do, would a little more be sure?"""
    best, target = outcome.best, question.slo.attainment
    lines = []
    if best is not None and best.goodput is not None:
        goodput, sure = best.goodput, best.surely_good(target)
        decided = "met with that confidence" if sure else "TOO CLOSE TO CALL"
        lines.append(f"at {figure(rate)} requests/s {share(goodput.probes[0])} meet both targets: {decided}")
        if goodput.most is not None:
            lines.append(
                f"at most it carries {figure(goodput.most)} requests/s; 95 % confidence {figure(goodput.low)} to "
                f"{figure(goodput.high)}"
            )
        if not sure and outcome.sure is not None and outcome.sure.goodput is not None:
            lines.append(f"sure to carry it: {_carried(outcome.sure.candidate, outcome.sure.goodput, unit)}")
    most = float("inf") if best is None else question.price.of(best.candidate)
    maybe = [one for one in outcome.answers if one.maybe_good(target) and question.price.of(one.candidate) < most]
    for answer in sorted(maybe, key=lambda one: question.price.of(one.candidate))[:1]:
        assert answer.goodput is not None
        lines.append(f"too close to call: {_carried(answer.candidate, answer.goodput, unit)}")
    return lines


def _carried(candidate: Candidate, goodput: Goodput, unit: str) -> str:
    return f"{candidate}, on {price(candidate, unit)}: {share(goodput.probes[0])}"


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
        return f"no {kind} placement serves more than {figure(max(one.ceiling for one in others))} requests/s"
    worse = f"{found.rate / best.rate - 1:+.0%}"
    if found.below is not None:
        at_best = f"{min(found.below, best.rate) / best.rate - 1:+.0%}"
        seen = f"at least {figure(found.rate)}, less than {figure(found.below)} requests/s"
        return f"best {kind}: {found.candidate}: {seen}, {at_best if at_best == worse else f'{worse} to {at_best}'}"
    close = "; too close to call" if found.goodput.high > best.goodput.low else ""
    return f"best {kind}: {found.candidate}: {figure(found.rate)} requests/s, {worse}{close}"


def table(outcome: Outcome, question: Question) -> list[str]:
    """The best placements, each with what binds it."""
    looked_at = outcome if outcome.scaled is None else outcome.scaled.part
    of_part = "" if outcome.scaled is None else " for one part"
    rows = [f"{counted(len(looked_at.answers), 'placement')} looked at{of_part}, "
            f"{len(outcome.unfit)} do not fit in memory"
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
    return f"{figure(answer.rate)}/s" if answer.rate > 0.0 else f"under {figure(answer.ceiling)}/s"


def what_if_lines(what_if: Sequence[Consequence], copies: int = 1) -> list[str]:
    """One for each change; `copies`: of how many parts that were looked at alone."""
    of_parts = "" if copies == 1 else f" ({copies} parts)"
    return [
        f"  if {one.change.name}: {figure(one.rate)} requests/s{of_parts}, bound by {one.binding}"
        + (", with workers of this size" if one.rate == 0.0 else "")
        for one in what_if
    ]
