"""`pdserve demo`: the shipped model on one prefill and one decode worker, real requests, and where their time went."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.commands.serve import configure_logging
from deploy.machine import raise_open_files
from deploy.models.demo_model import demo_model_directory
from deploy.resolve import resolve
from deploy.serve import Serving
from deploy.stop_signals import StopSignals
from pdserve.client import AsyncClient, Completion, GenerateOptions
from pdserve.config import RouterConfig, ServeConfig, WorkerConfig
from pdserve.errors import ServingError
from pdserve.exit import ExitCode
from pdserve.slo import Slo

SLO = Slo(ttft_s=1.0, tpot_s=0.1)  # what this small model should keep on two cores
PROMPTS = (
    "import os\nimport sys\n",
    "class Queue:\n",
    "def read(self",
    "def main():\n",
    "try:\n    import",
    "if __name__ ==",
)
MAX_TOKENS = 48
_LINE_CHARS = 72


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request of the demo."""

    number: int
    result: Completion | ServingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: it shows one thing."""


def run(args: argparse.Namespace) -> int:
    """Serve, ask, tell, stop."""
    configure_logging("WARNING")
    os.environ.setdefault("PDSERVE_LOG_LEVEL", "WARNING")  # the workers', who inherit it
    raise_open_files()
    return asyncio.run(_demo())


async def _demo() -> int:
    signals = StopSignals()
    signals.install()
    split, colocated = _cluster(1), _cluster(0)
    try:
        exit_code = await signals.unless_asked(_show(split, colocated))
        return 130 if exit_code is None else exit_code
    finally:
        await asyncio.gather(split.close(), colocated.close())


def _cluster(num_prefill: int) -> Serving:
    """The shipped model, with one decode worker."""
    config = ServeConfig(
        model=str(demo_model_directory()),
        prefill=num_prefill,
        router=RouterConfig(grpc="127.0.0.1:0", http="127.0.0.1:0", served_model_name="demo"),
        worker=WorkerConfig(dtype="float32", kv_bytes=1 << 26, enable_prefix_caching=False),
    )
    return Serving(resolve(config))


async def _show(split: Serving, colocated: Serving) -> int:
    say("Starting a router, a prefill worker and a decode worker; and, to compare, one worker that does both.")
    started_s = time.monotonic()
    ready, reference = await asyncio.gather(split.start(), colocated.start())
    say(f"Ready after {time.monotonic() - started_s:.1f} s: gRPC {ready.grpc}, HTTP {ready.http}")
    for worker in ready.workers:
        say(f"  {worker.id:<10} {worker.role:<8} pid {worker.pid} on {worker.device}")
    say(f"\n{len(PROMPTS)} requests at once:\n")
    async with AsyncClient(ready.grpc) as client, AsyncClient(reference.grpc) as other:
        await _ask(client, 0, 4, quiet=True)  # the first request of a process pays for what is set up once
        began_s = time.monotonic()
        outcomes = await asyncio.gather(*(_ask(client, number) for number in range(len(PROMPTS))))
        wall_s = time.monotonic() - began_s
        again = await asyncio.gather(*(_ask(other, number, quiet=True) for number in range(len(PROMPTS))))
    _table(outcomes)
    _goodput(outcomes, wall_s)
    return _compare(outcomes, again)


async def _ask(client: AsyncClient, number: int, max_tokens: int = MAX_TOKENS, *, quiet: bool = False) -> Outcome:
    """One request, its text told line by line as it comes."""
    pending = PROMPTS[number]
    options = GenerateOptions(
        max_tokens=max_tokens, ignore_eos=True, temperature=0.7, seed=number, slo=SLO, timeout_s=60.0
    )
    try:
        async for event in client.stream(PROMPTS[number], options):
            if isinstance(event, Completion):
                if not quiet:
                    _tell(number, pending, last=True)
                return Outcome(number, event)
            if not quiet:
                pending = _tell(number, pending + event.text)
    except ServingError as error:
        return Outcome(number, error)
    raise AssertionError("a stream ends with a Completion or an error")


def _tell(number: int, text: str, *, last: bool = False) -> str:
    """Print whole lines, return the rest."""
    *lines, rest = text.split("\n")
    while len(rest) > _LINE_CHARS:
        lines.append(rest[:_LINE_CHARS])
        rest = rest[_LINE_CHARS:]
    for line in [*lines, *([rest] if last else [])]:
        say(f"  [{number}] {line}")
    return rest


def _table(outcomes: Sequence[Outcome]) -> None:
    say("\nWhere the time went, milliseconds:")
    head = ("request", "tokens", "TTFT", "TPOT", "queue", "prefill", "transfer", "wait", "decode", "served by", "SLO")
    rows: list[tuple[str, ...]] = [head]
    for outcome in outcomes:
        done = outcome.result
        if isinstance(done, ServingError):
            rows.append((f"[{outcome.number}]", f"{done.status.name}: {done}", *[""] * 9))
            continue
        timing, verdict = done.timing, done.verdict
        phases = (timing.ttft_s, timing.tpot_s, timing.queue_s, timing.prefill_s, timing.transfer_s,
                  timing.decode_wait_s, timing.decode_s)  # fmt: skip
        met = "met" if verdict.met_ttft and verdict.met_tpot else f"missed: {verdict.blame.value}"
        numbers = (f"{1000 * phase:.1f}" for phase in phases)
        tokens = f"{done.prompt_tokens}+{len(done.token_ids)}"
        rows.append(
            (f"[{outcome.number}]", tokens, *numbers, f"{timing.prefill_worker} -> {timing.decode_worker}", met)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _goodput(outcomes: Sequence[Outcome], wall_s: float) -> None:
    """Attainment, and requests per second that met both thresholds; a failed request is a miss."""
    done = [outcome.result for outcome in outcomes if isinstance(outcome.result, Completion)]
    met = sum(one.verdict.met_ttft and one.verdict.met_tpot for one in done)
    tokens = sum(len(one.token_ids) for one in done)
    say(f"\nSLO: TTFT at most {SLO.ttft_s:g} s and TPOT at most {SLO.tpot_s:g} s")
    say(f"  attainment {met} of {len(outcomes)} ({met / len(outcomes):.0%})")
    say(f"  {met / wall_s:.1f} requests/s within the SLO, {tokens / wall_s:.0f} tokens/s, in {wall_s:.2f} s")


def _compare(outcomes: Sequence[Outcome], again: Sequence[Outcome]) -> int:
    """Whether the split gave every token that one worker gives alone."""
    pairs = [(a.result, b.result) for a, b in zip(outcomes, again, strict=True)]
    equal = sum(
        isinstance(a, Completion) and isinstance(b, Completion) and a.token_ids == b.token_ids for a, b in pairs
    )
    handed = sum(isinstance(a, Completion) and a.timing.prefill_worker != a.timing.decode_worker for a, _ in pairs)
    say(f"\n{handed} of {len(pairs)} requests were handed over; {equal} of {len(pairs)} gave the tokens, one by one, "
        "that a single worker gives.")  # fmt: skip
    return ExitCode.OK if equal == len(pairs) else ExitCode.FAILED


def say(text: str) -> None:
    """To the terminal, at once."""
    print(text, flush=True)
