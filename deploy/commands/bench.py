"""`pdserve bench`: load on a server, ours or any OpenAI one, and what it showed (docs/bench.md)."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bench.load.compare import Comparison, compare_at
from bench.load.document import Document
from bench.load.goodput import Goodput, Probe
from bench.load.processes import processes_needed
from bench.load.session import Run, SearchSettings, Settings, Watch, check_fits, find_goodput, run_at, warm_up
from bench.load.show import comparison_lines, goodput_lines, probe_line, rate_words, summary_lines, workload_line
from bench.load.summary import Objective, Summary
from bench.load.target import Target, introduced, parse_target
from deploy.arguments import check_output
from deploy.commands.bench_arguments import add_arguments, check, workload_spec
from deploy.tls_arguments import refuse_tls, tls_of
from deploy.words import counted
from pdserve.exit import ExitCode, StartError
from placement.workload import WorkloadSource

__all__ = ["add_arguments", "run"]

EXIT_INTERRUPTED = 130


def run(args: argparse.Namespace) -> int:
    """Everything is checked before the first request. Exit 1 when no request was answered, or the server ended."""
    check(args)
    spec = workload_spec(args)
    source = WorkloadSource(spec)
    for flag, path in (("--json", args.json), ("--report", args.report)):
        if path is not None:
            check_output(path, flag)
    if not any((server or "").startswith(("grpcs:", "https:")) for server in (args.server, args.compare)):
        refuse_tls(args, f"--server {args.server}", "say grpcs:// or https://")
    return Command(args, source, _target(args, args.server, "--server")).run()


def _target(args: argparse.Namespace, text: str, flag: str) -> Target:
    target = parse_target(text, flag, args.chat, args.api_key, tls_of(args))
    extra = json.dumps(args.extra_body)
    asked = replace(target, model=args.model, exact_lengths=args.ignore_eos, extra_body=extra)
    found = introduced(asked, flag)
    return found if args.vocab_size is None else replace(found, vocab_size=args.vocab_size)


class Command:
    """One invocation: its parts, what it found, and what it says."""

    def __init__(self, args: argparse.Namespace, source: WorkloadSource, target: Target) -> None:
        self._args, self._source, self._target = args, source, target
        self._against = None if args.compare is None else _target(args, args.compare, "--compare")
        self._prompt_seed = secrets.randbelow(1 << 32) if args.prompt_seed is None else args.prompt_seed
        self._objective = Objective(args.slo_ttft, args.slo_tpot)
        self._settings = Settings(
            objective=self._objective,
            seed=args.seed,
            prompt_seed=self._prompt_seed,
            num_requests=args.num_requests,
            duration_s=args.duration,
            skip_s=args.skip,
            timeout_s=args.timeout,
            max_open=args.max_concurrency,
            num_processes=args.processes,
            tell_slo=args.send_slo,
        )
        self._text: list[str] = []  # all that was said: the report has it too
        self._runs: list[Run] = []
        self._comparisons: list[Comparison] = []
        self._goodput: Goodput | None = None

    def run(self) -> int:
        """The whole command; results so far are written when it is interrupted."""
        targets = [self._target] if self._against is None else [self._target, self._against]
        try:
            for target in targets:
                self._greet(target)
            if self._args.find_goodput:
                self._search()
            elif self._against is not None:
                self._compare(self._target, self._against)
            else:
                self._sweep()
        except KeyboardInterrupt:
            self._say("interrupted")
            self._write()
            return EXIT_INTERRUPTED
        except StartError:  # a server that ended within a search, say
            if self._all_runs():
                self._write()
            raise
        ended = self._ended(targets)
        self._write()
        summaries = [run.summary for run in self._all_runs()]
        found = self._goodput
        cut = found is not None and not found.complete and not found.server_ended
        cut = cut or any(one.interrupted for one in self._comparisons)
        if cut or any(one.interrupted for one in summaries):
            return EXIT_INTERRUPTED
        served = any(one.outcomes.get("ok") for one in summaries)
        return ExitCode.OK if served and not ended else ExitCode.FAILED

    def _ended(self, targets: Sequence[Target]) -> bool:
        """Whether a server is gone; asked only where requests failed."""
        if not any(run.summary.outcomes.get("failed") for run in self._all_runs()):
            return False
        gone = [target for target in targets if not target.listens()]
        for target in gone:
            self._say(f"{target.name} takes no connections any more: it ended during the run")
        return bool(gone)

    def _greet(self, target: Target) -> None:
        rate, number, duration = self._first_rate(), self._args.num_requests, self._args.duration
        if self._args.find_goodput and number is None and duration is None:
            number = self._args.min_requests
        sample = self._source.build(rate=rate, num_requests=number, duration_s=duration, seed=self._args.seed)
        workers = f", {counted(target.num_workers, 'worker')}" if target.num_workers is not None else ""
        self._say(f"{target.name}: {target.model}{workers}")
        if target is self._target:
            processes = self._args.processes or processes_needed(sample, target.door)
            self._say(workload_line(sample, rate))
            made_by = f"{processes} generator process{'' if processes == 1 else 'es'}"
            self._say(f"seed {self._args.seed}, prompt seed {self._prompt_seed}, {made_by}")
        check_fits(target, sample)
        if self._args.warmup:
            warm_up(target, sample, self._args.warmup, self._args.timeout, self._prompt_seed)

    def _first_rate(self) -> float | None:
        rates: Sequence[float] = self._args.rates or ()
        first: float | None = self._args.rate or (rates[0] if rates else None) or self._source.own_rate
        return first or (1.0 if self._args.find_goodput else None)

    def _sweep(self) -> None:
        for number, rate in enumerate(self._args.rates or [self._args.rate]):
            with _progress() as watch:
                run = run_at(self._target, self._source, rate, self._settings, number, watch)
            self._runs.append(run)
            self._say(f"\nat {rate_words(run.rate, run.summary.offered_rate)}:")
            self._say("\n".join(summary_lines(run.summary, self._objective)))
            if run.summary.interrupted:
                return

    def _search(self) -> None:
        args = self._args
        search = SearchSettings(args.attainment, args.resolution, args.confidence, args.min_probe_s, args.min_requests)
        start = self._first_rate()
        assert start is not None
        self._say(f"\nsearching the rate at which {args.attainment:.0%} of requests meet the SLO:")
        with _progress() as watch:
            self._goodput = find_goodput(
                self._target, self._source, start, self._settings, search, watch, self._tell_probe
            )
        self._say("\n".join(goodput_lines(self._goodput, args.attainment, args.gpus, self._target.num_workers)))

    def _tell_probe(self, probe: Probe, summary: Summary) -> None:
        self._runs.append(Run(probe.rate, summary, ()))
        self._say(probe_line(probe, summary))

    def _compare(self, first: Target, second: Target) -> None:
        rounds = self._args.rounds
        for number, rate in enumerate(self._args.rates or [self._args.rate]):
            with _progress() as watch:
                found = compare_at(
                    (first, second),
                    self._source,
                    rate,
                    self._settings,
                    rounds,
                    number * rounds,
                    watch,
                    self._tell_round,
                )
            self._comparisons.append(found)
            self._say("\n" + "\n".join(comparison_lines(found, (first.name, second.name))))
            if found.interrupted:
                return

    def _tell_round(self, target: Target, number: int, run: Run) -> None:
        self._say(f"\nround {number + 1}, {target.name}, {rate_words(run.rate, run.summary.offered_rate)}:")
        self._say("\n".join(summary_lines(run.summary, self._objective)))

    def _all_runs(self) -> list[Run]:
        return self._runs + [run for one in self._comparisons for run in (*one.first, *one.second)]

    def _say(self, text: str) -> None:
        self._text.append(text)
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def _write(self) -> None:
        args = self._args
        spec = args.workload or args.trace or f"input={args.input_len},output={args.output_len}"
        document = Document(
            self._target, str(spec), self._settings, self._runs, self._goodput, self._comparisons, self._against
        )
        try:
            if args.json is not None:
                args.json.write_text(json.dumps(document.as_json(), indent=1) + "\n", encoding="utf-8")
            if args.report is not None:
                self._report(args.report)
        except OSError as error:
            raise StartError(f"{error.filename} cannot be written: {error.strerror}", ExitCode.OUTPUT) from None

    def _report(self, path: Path) -> None:
        from bench.load.report import write_report  # matplotlib takes a second to load

        runs: dict[str, Sequence[Run]] = {self._target.name: self._runs}
        if self._against is not None:
            runs = {
                self._target.name: [run for one in self._comparisons for run in one.first],
                self._against.name: [run for one in self._comparisons for run in one.second],
            }
        target = self._args.attainment if self._args.find_goodput else None
        text = "\n".join(self._text)
        write_report(path, f"pdserve bench: {self._target.name}", text, runs, self._objective, target)


@contextmanager
def _progress() -> Iterator[Watch]:
    """A bar on a terminal, nothing elsewhere."""
    bar = tqdm(unit="request", leave=False, disable=None, file=sys.stderr)

    def watch(now_s: float, done: int, whole: int) -> None:
        bar.total = whole
        bar.n = done
        bar.refresh()

    shown: Callable[[float, int, int], None] = watch
    try:
        yield shown
    finally:
        bar.close()
