"""`pdserve plan --validate`: the plan and two others on this machine, prediction beside measurement.

What measures is bench/plan_validation.py; here is only what it is given, and why it may not be possible.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.arguments import refuse
from deploy.machine import available_bytes, machine_in_words
from deploy.planning.profile import THIS_MACHINE, FromProfile
from pdserve.byte_sizes import size_in_words
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.search.answer import Outcome
from placement.search.build import Serving
from placement.search.candidate import Candidate
from placement.search.question import Question
from placement.search.space import Space

PLACEMENTS = 3  # the plan's and two others
ROUNDS = 3
SPREAD = (0.8, 1.0, 1.2)  # of the predicted goodput: so that the measured one lies between
_REQUESTS, _SHORTEST_S, _LONGEST_S = 100, 10.0, 30.0  # of one run
_BETWEEN_S = 5.0  # two runs: warm-up and lone requests
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Validation:
    """What was asked for, checked before the search."""

    args: argparse.Namespace

    @classmethod
    def of(cls, args: argparse.Namespace, space: Space, profile: FromProfile | None) -> Validation:
        """Errors: ConfigError where this machine cannot run such a plan, or its prediction is not of this machine."""
        where = "plan --validate"
        refuse(args, ("bounds", "local_prefill_max_tokens", "attainment"), where)
        problems = []
        if profile is None or not profile.of_one_device:
            delays = " --mock-delays" if args.validate == "mock" else " --threads 1"
            problems.append(
                f"{where} needs --profile with what `pdserve profile MODEL -o PROFILE.json{delays}` measures here"
            )
        else:
            problems += _not_from_here(profile, args)
        if args.validate == "model" and not Path(args.model).is_dir():
            problems.append(
                f"--validate runs --model, and {args.model} is no checkpoint directory: give one, or --validate mock"
            )
        types = sorted({gpu.name for gpu in (*space.prefill_gpus, *space.decode_gpus)})
        if types != [THIS_MACHINE]:
            problems.append(
                f"--validate runs on this machine, the plan would be for {', '.join(types)}: leave out --gpu"
            )
        if {*space.tps, *space.pps} != {1}:
            problems.append("--validate starts workers that are whole models on one device: --tp and --pp must be 1")
        if args.affinity == "low":
            problems.append("--validate starts one cluster, --affinity low may plan several: leave it out")
        if args.block_size not in (None, _BLOCK_SIZE):
            problems.append(f"--validate runs blocks of {_BLOCK_SIZE} tokens, --block-size is {args.block_size}")
        if problems:
            raise ConfigError(problems)
        return cls(args)

    def run(self, outcome: Outcome, question: Question, serving: Serving) -> None:
        """Start, replay load, print. Errors: StartError."""
        from bench.plan_validation import FAILURES, parse, run  # its servers and load take a while to import
        from bench.served.process_tree import adopt_orphans, hear_signals

        given = self.arguments(outcome, question, serving)
        asked = parse(given)
        minutes = len(asked.placements) * len(asked.rates) * asked.rounds * (asked.duration + _BETWEEN_S) / 60
        print(f"validation: python -m bench.plan_validation {' '.join(given)}")
        print(f"  about {minutes:.0f} minutes; the machine should do nothing else", flush=True)
        adopt_orphans()
        hear_signals()
        try:
            with tempfile.TemporaryDirectory(prefix="pdserve-validate-") as name:
                run(asked, Path(name))
        except FAILURES as error:
            raise StartError(f"--validate: {error}") from None

    def arguments(self, outcome: Outcome, question: Question, serving: Serving) -> list[str]:
        """Of the benchmark."""
        best = outcome.best
        assert best is not None and best.goodput is not None
        args, candidate = self.args, best.candidate
        placements = list(dict.fromkeys(_placements(outcome)))[:PLACEMENTS]
        most = best.rate if best.goodput.most is None else best.goodput.most
        seconds = min(max(_REQUESTS / most, _SHORTEST_S), _LONGEST_S)
        values = {
            "--profile": args.profile, "--workload": args.workload,
            "--rates": ",".join(f"{factor * most:.4g}" for factor in SPREAD),
            "--duration": f"{seconds:.0f}", "--rounds": ROUNDS,
            "--slo-ttft": question.slo.ttft_s, "--slo-tpot": question.slo.tpot_s, "--chunk": candidate.chunk_tokens,
            "--max-num-seqs": min(serving.max_num_seqs, candidate.chunk_tokens),
            "--max-model-len": serving.max_model_len,
            "--kv-bytes": self._kv_bytes(candidate, serving, sum(_num_workers(one) for one in placements)),
        }  # fmt: skip
        model = [str(Path(args.model).absolute())] if args.validate == "model" else []
        pairs = [str(word) for name, value in values.items() for word in (name, value)]
        return [*model, *pairs, "--placements", *placements]

    def _kv_bytes(self, candidate: Candidate, serving: Serving, num_workers: int) -> int:
        """The plan's blocks for each worker, or as many as can be in use. Errors: StartError."""
        from bench.plan_validation_twin import GENERATION_BYTES, MOCK_BLOCK_BYTES

        longest = -(-serving.max_model_len // serving.block_size)
        blocks = min(serving.blocks(candidate.decode), 2 * serving.max_num_seqs * longest)
        block_bytes = serving.block_bytes if self.args.validate == "model" else MOCK_BLOCK_BYTES
        each = blocks * (block_bytes + GENERATION_BYTES)
        free = available_bytes()
        if num_workers * each > free:
            raise StartError(
                f"--validate would start {num_workers} workers with {size_in_words(each)} of KV each, "
                f"{size_in_words(free)} of memory are free: give --kv-bytes",
                ExitCode.ENVIRONMENT,
            )
        return each


def _not_from_here(profile: FromProfile, args: argparse.Namespace) -> list[str]:
    subject, here = profile.subject, machine_in_words()
    if args.validate == "mock" and profile.served is not None:
        return [
            f"--validate mock: the delays of {args.profile} are the real engine's; `pdserve profile MODEL -o "
            "PROFILE.json --mock-delays` measures the mock engine's"
        ]
    if subject is None:
        return (
            []
            if args.validate == "mock"
            else ["--validate: the profile does not say of what it is: use --validate mock"]
        )
    if subject.device != "cpu":
        return [f"--validate runs workers on the CPU, the profile is of {subject.device}"]
    if subject.machine != here:
        return [f"--validate: the profile was measured on {subject.machine}; this machine is {here}"]
    if args.validate == "model" and subject.threads != 1:
        return [f"--validate runs workers of one thread; the profile is of {subject.threads}: make it with --threads 1"]
    return []


def _placements(outcome: Outcome) -> Iterator[str]:
    """`PREFILL+DECODE` workers: the plan's, then the next best, then what is small enough everywhere."""
    assert outcome.best is not None
    yield _workers(outcome.best.candidate)
    yield from (_workers(one.candidate) for one in outcome.answers if one.rate > 0.0)
    yield from ("1+1", "0+1", "0+2")


def _workers(candidate: Candidate) -> str:
    return f"{0 if candidate.prefill is None else candidate.prefill.workers}+{candidate.decode.workers}"


def _num_workers(placement: str) -> int:
    return sum(int(one) for one in placement.split("+"))
