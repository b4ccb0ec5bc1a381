"""What constraints cost: to try, to compile, and per token, beside the same row without one.

    python -m bench.grammar [--vocab 151936] [--tokens 200] [--batch 16] [--model tiny]

Tokens per row: random walks through each constraint over a made vocabulary, as large as the largest models have. CPU
times of one thread: medians, and the slowest mask. Steps: whole decode steps of a small model, all rows constrained or
none, in turn; the least wall time of each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.arguments import positive
from bench.limits import least_seconds
from bench.reference_models import model_directory
from engine.grammar.compiler import GrammarCompiler
from engine.kv_pool import KvPool
from engine.model import load_model
from engine.runner import TorchRunner
from engine.sampler import sample
from engine.selection import flags_of
from pdserve.grammar_trial import problem_of
from pdserve.ids import SequenceKey
from pdserve.sampling import Constraint, ConstraintKind, SamplingParams
from router.validation import ConstraintTrials
from scheduling.step import SampleRequest, SequenceStep

EOS = (0,)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 8},
    },
    "required": ["name", "age"],
}
K = ConstraintKind
CONSTRAINTS = {
    "any object": Constraint(K.JSON_OBJECT),
    "4 properties": Constraint(K.JSON_SCHEMA, json.dumps(PERSON)),
    "100 properties": Constraint(
        K.JSON_SCHEMA, json.dumps({"type": "object", "properties": {f"field_{i}": PERSON for i in range(100)}})
    ),
    "enum of 1000": Constraint(K.JSON_SCHEMA, json.dumps({"enum": [f"value number {i}" for i in range(1000)]})),
    "regex": Constraint(K.REGEX, "([A-Z][a-z]{1,12} ){10,40}[0-9]{4}"),
    "choice of 3": Constraint(K.CHOICE, '["positive","negative","neutral"]'),
}
HOSTILE = {
    "repeated pattern": Constraint(K.REGEX, "(a{1000}){1000}"),
    "chain of rules": Constraint(K.GRAMMAR, "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(3000))),
}


def write_vocabulary(directory: Path, size: int) -> None:
    """A byte-level tokenizer.json of words made of syllables, half of them with a space before."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    rng = random.Random(0)
    words = dict.fromkeys(["<end>", *alphabet])
    while len(words) < size:
        word = "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 6)))
        words[rng.choice(["", "\u0120"]) + word[: rng.randint(2, 12)]] = None
    vocab = {word: token for token, word in enumerate(words)}
    added = dict(id=0, content="<end>", single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    definition = {
        "version": "1.0", "added_tokens": [added], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(definition))


def timed(act: Callable[[], object]) -> float:
    """CPU milliseconds of this thread."""
    begin = time.thread_time()
    act()
    return 1e3 * (time.thread_time() - begin)


def rows(compiler: GrammarCompiler, vocab: int, num_tokens: int) -> None:
    """A line per constraint: masks and sampling of a row, each beside the plain row."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(0.0, 2.0, (1, vocab)).astype(np.float32))
    drawn = SamplingParams(max_tokens=num_tokens, temperature=1.0, seed=1)
    plain = SampleRequest(drawn, [7], 1)
    plain_ms = statistics.median(timed(lambda: sample(logits, [plain])) for _ in range(30))
    print(f"a row of {vocab:,} logits, temperature 1, no constraint: {plain_ms:.3f} ms to sample")
    heads = ("trial", "compile", "copy", "mask", "slowest", "sample")
    print(f"{'':16} " + " ".join(f"{head:>8}" for head in heads) + "   ms; (mask + sample) / plain")
    for name, constraint in CONSTRAINTS.items():
        trial_ms = timed(lambda constraint=constraint: problem_of(constraint))  # type: ignore[misc]
        compile_ms = timed(lambda constraint=constraint: compiler.matcher(constraint, EOS))  # type: ignore[misc]
        copy_ms = statistics.median(timed(lambda c=constraint: compiler.matcher(c, EOS)) for _ in range(9))  # type: ignore[misc]
        masks, samples = walk(compiler, constraint, logits, drawn, num_tokens)
        ratio = (statistics.median(masks) + statistics.median(samples)) / plain_ms
        figures = (trial_ms, compile_ms, copy_ms, statistics.median(masks), max(masks), statistics.median(samples))
        print(f"{name:16} " + " ".join(f"{one:8.3f}" for one in figures) + f"   x{ratio:.2f}")


def walk(
    compiler: GrammarCompiler, constraint: Constraint, logits: torch.Tensor, drawn: SamplingParams, num_tokens: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each mask and of each sampling, through outputs drawn at random until there are enough tokens."""
    masks, samples, rng = list[float](), list[float](), random.Random(0)
    while len(masks) < num_tokens:
        matcher, tokens = compiler.matcher(constraint, EOS), [7]
        while len(masks) < num_tokens:
            begin = time.thread_time()
            mask = matcher.allowed(tokens, 1)
            between = time.thread_time()
            sample(logits, [SampleRequest(drawn, tokens, 1, matcher)], {0: mask})
            masks.append(1e3 * (between - begin))
            samples.append(1e3 * (time.thread_time() - between))
            choices = [token for token in np.flatnonzero(flags_of(mask, logits.shape[1])).tolist() if token not in EOS]
            if not choices:
                break
            tokens.append(rng.choice(choices))
    return masks, samples


def steps(model_name: str, directory: Path, batch: int) -> None:
    """Whole decode steps, constrained and not."""
    model = load_model(directory, "bfloat16")
    runner = TorchRunner(model, KvPool(model.kv_layout(16), batch * 8))
    compiler = GrammarCompiler(directory, model.vocab_size)
    params = SamplingParams(max_tokens=64, temperature=1.0, seed=1)
    eos = model.eos_token_ids or EOS

    def step_s(constraint: Constraint | None) -> float:
        sampling = replace(params, constraint=constraint)
        made = []
        for n in range(batch):
            matcher = None if constraint is None else compiler.matcher(constraint, eos)
            request = SampleRequest(sampling, [7] * 100, 100, matcher)
            made.append(SequenceStep(SequenceKey(str(n)), [7], 99, list(range(n * 8, n * 8 + 8)), request))
        return least_seconds(lambda: runner.execute(made), 9)

    pairs = [(step_s(None), step_s(CONSTRAINTS["any object"])) for _ in range(5)]
    plain_s, constrained_s = min(one for one, _ in pairs), min(one for _, one in pairs)
    print(
        f"a decode step of {model_name}, {model.vocab_size:,} logits, {batch} rows, bfloat16: {1e3 * plain_s:.2f} ms"
        f" plain, {1e3 * constrained_s:.2f} ms with every row constrained: x{constrained_s / plain_s:.2f}"
    )


def hostile() -> None:
    """How long a door takes to refuse, in a process of its own."""

    async def ask(trials: ConstraintTrials, constraint: Constraint) -> float:
        begin = time.monotonic()
        try:
            await trials.check(constraint, "constraint")
        except Exception as error:
            print(f"  {error}", end="")
        return time.monotonic() - begin

    async def run() -> None:
        trials = ConstraintTrials()
        first_s = await ask(trials, CONSTRAINTS["regex"])
        print(f"the first constraint of a router, with the start of its trial process: {1e3 * first_s:.0f} ms")
        for name, constraint in HOSTILE.items():
            took_s = await ask(trials, constraint)
            print(f": {name} refused after {1e3 * took_s:.0f} ms")
        trials.close()

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=positive, default=151_936)
    parser.add_argument("--tokens", type=positive, default=200)
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        write_vocabulary(Path(directory), args.vocab)
        compiler = GrammarCompiler(directory, args.vocab)
        read_ms = timed(lambda: compiler.matcher(Constraint(K.REGEX, "a"), EOS))
        print(f"reading a tokenizer of {args.vocab:,} tokens, once per worker: {read_ms:.0f} ms")
        rows(compiler, args.vocab, args.tokens)
    with model_directory(args.model) as found:
        steps(args.model, found, args.batch)
    hostile()


if __name__ == "__main__":
    main()
