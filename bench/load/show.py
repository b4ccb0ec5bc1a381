"""Runs in words, for a terminal."""

from __future__ import annotations

import math

from bench.load.compare import Comparison
from bench.load.goodput import Goodput, Probe
from bench.load.statistics import Spread
from bench.load.summary import Objective, Summary
from placement.workload import Workload

_AS_ASKED = 0.005  # of the rate: what is nearer than that is called the same


def workload_line(workload: Workload, asked: float | None) -> str:
    """What is sent; `asked`: requests per second."""
    prompt, output = workload.prompt_tokens, workload.output_tokens
    skipped = f", {workload.num_skipped} rows of the file left out" if workload.num_skipped else ""
    rate = f"{workload.rate:.3g}/s"
    if asked and not _as_asked(asked, workload.rate):
        rate = f"{asked:.3g}/s asked for, {rate} drawn"
    return (
        f"{len(workload):,} requests in {workload.arrival_s[-1]:.0f} s ({rate}), "
        f"prompts {prompt.mean():,.0f} tokens on average (most {prompt.max():,}), "
        f"outputs {output.mean():,.0f} (most {output.max():,}){skipped}"
    )


def rate_words(asked: float, sent: float) -> str:
    """Requests per second; few random arrivals come faster or slower than their mean, and then both are told."""
    if not sent or _as_asked(asked, sent):
        return f"{asked:.4g} requests/s"
    return f"{asked:.4g} requests/s asked for, {sent:.3g} sent"


def _as_asked(asked: float, found: float) -> bool:
    return abs(found - asked) <= _AS_ASKED * asked


def summary_lines(run: Summary, objective: Objective) -> list[str]:
    """All of one run."""
    head = f"{'':<8}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}"
    spreads = (("TTFT", run.ttft_s), ("TPOT", run.tpot_s), ("ITL", run.itl_s), ("E2E", run.e2e_s))
    lines = [f"{head}   ms, from the time that each request was to be sent", *(_row(*one) for one in spreads)]
    lines.append(
        f"throughput  {run.request_throughput:.3g} requests/s, {run.output_throughput:,.0f} output tokens/s, "
        f"{run.prompt_throughput:,.0f} prompt tokens/s over {run.elapsed_s:.1f} s; offered {run.offered_rate:.3g} "
        "requests/s"
    )
    lines.append("outcomes    " + ", ".join(f"{number} {name}" for name, number in run.outcomes.items()))
    lines += [f"    {number} x {message}" for message, number in list(run.errors.items())[:3]]
    if run.cached_share > 0:
        lines.append(f"prefix cache held {run.cached_share:.1%} of the prompts' tokens")
    if objective.ttft_s is not None or objective.tpot_s is not None:
        lines.append(_attainment(run, objective))
    if run.blame and (objective.ttft_s is not None or objective.tpot_s is not None):
        lines.append("blame       " + ", ".join(f"{number} {name}" for name, number in run.blame.items()))
    if run.capped_p99_s > 0.001:
        lines.append(f"the limit on open requests held requests back {_ms(run.capped_p99_s)} ms at p99; it is counted")
    return lines + warnings(run)


def warnings(run: Summary) -> list[str]:
    """What makes the numbers doubtful."""
    found = []
    if run.generator_is_slow:
        cores = ", ".join(f"{one:.2f}" for one in run.generator_cores)
        found.append(
            f"WARNING: the generator was the bottleneck: requests left {_ms(run.late_p99_s)} ms late at p99 (most "
            f"{_ms(run.late_max_s)}), its processes used {cores} cores. Latencies hold that; more --processes may help."
        )
    if run.machine_was_busy:
        found.append(
            f"WARNING: this machine was too busy: requests left {_ms(run.late_p99_s)} ms late at p99 (most "
            f"{_ms(run.late_max_s)}) though the generator used {max(run.generator_cores):.2f} cores at most a process. "
            "Latencies hold that; something else took the cores, or one of them for long."
        )
    if run.interrupted:
        found.append("interrupted: results so far")
    return found


def _row(name: str, spread: Spread) -> str:
    return f"{name:<8}" + "".join(f"{_ms(one):>10}" for one in (spread.mean, spread.p50, spread.p90, spread.p99))


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:,.1f}"


def _attainment(run: Summary, objective: Objective) -> str:
    wanted = [f"TTFT <= {objective.ttft_s:g} s" if objective.ttft_s is not None else "",
              f"TPOT <= {objective.tpot_s:g} s" if objective.tpot_s is not None else ""]  # fmt: skip
    limits = run.attainment_limits
    return (
        f"attainment  {run.attainment:.1%} ({run.met} of {run.num_requests}; 95 % limits {limits.low:.1%}.."
        f"{limits.high:.1%}) of {' and '.join(filter(None, wanted))}; TTFT {run.met_ttft}, TPOT {run.met_tpot}; "
        f"{run.good_throughput:.3g} good requests/s"
    )


def probe_line(probe: Probe, run: Summary) -> str:
    limits = probe.limits
    return (
        f"{probe.rate:8.3g}/s  {probe.num_met:>5} of {probe.num_requests:<5} met "
        f"({limits.low:5.1%}..{limits.high:6.1%})  TTFT p90 {_ms(run.ttft_s.p90):>8}  "
        f"TPOT p90 {_ms(run.tpot_s.p90):>7} ms  {probe.decision.value}"
    )


def goodput_lines(found: Goodput, attainment: float, num_gpus: int | None, num_workers: int | None) -> list[str]:
    """The answer, with what is sure of it."""
    if not found.complete:
        why = "the server ended" if found.server_ended else "interrupted"
        passed = f"at least {found.rate:.3g} requests/s passed" if found.rate else "no rate had passed yet"
        return [f"goodput: {why}; {passed}"]
    if found.rate == 0:
        lowest = min((one.rate for one in found.probes), default=0.0)
        return [f"goodput: none found; {lowest:.3g} requests/s already failed"]
    if not found.bounded:
        return [f"goodput: at least {found.rate:.3g} requests/s; no rate that was tried failed"]
    high = "unknown" if math.isinf(found.high) else f"{found.high:.3g}"
    lines = [
        f"goodput at {attainment:.0%}: {found.rate:.3g} requests/s (sure of {found.low:.3g}, failed for sure at {high})"
    ]
    if num_gpus:
        lines.append(f"  {found.rate / num_gpus:.3g} requests/s per GPU ({num_gpus})")
    if num_workers:
        lines.append(f"  {found.rate / num_workers:.3g} requests/s per worker ({num_workers})")
    return lines


def comparison_lines(found: Comparison, names: tuple[str, str]) -> list[str]:
    """Medians of both and the ratios of the rounds."""
    rounds = len(found.first)
    if found.interrupted and not rounds:
        return [f"at {found.rate:.3g} requests/s: interrupted before the first round had ended: nothing to compare"]
    lines = [
        f"at {found.rate:.3g} requests/s, {rounds} rounds in turn; a = {names[0]}, b = {names[1]}"
        + ("; the round that was interrupted does not count" if found.interrupted else ""),
        f"{'':<18}{'a':>12}{'b':>12}   a is better by (least..most)",
    ]
    for one in found.ratios:
        scale = 1.0 if one.figure in ("output tokens/s", "attainment") else 1e3
        name = one.figure if scale == 1.0 else f"{one.figure}, ms"
        lines.append(
            f"{name:<18}{scale * one.first:>12,.3f}{scale * one.second:>12,.3f}   "
            f"{one.median:.2f} x ({one.low:.2f}..{one.high:.2f})"
        )
    return lines
