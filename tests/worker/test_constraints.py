"""Constrained output over real workers: valid by an independent judge, and the same tokens split and colocated."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from deploy.models.byte_bpe import END_OF_TEXT_ID, IM_END_ID
from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec
from engine.grammar.compiler import MAX_KEPT, GrammarCompiler
from pdserve.errors import CapacityError, InvariantViolation, QueueFull
from pdserve.grammar_trial import problem_of
from pdserve.ids import SequenceKey
from pdserve.sampling import Constraint, ConstraintKind, SamplingParams
from pdserve.v1 import inference_pb2
from pdserve.v1 import worker_pb2 as pb
from worker import constraints
from worker.constraints import MAX_WAITING, NUM_THREADS, ConstraintDesk

Launch = Callable[..., AbstractAsyncContextManager[Any]]
Outputs = dict[str, tuple[list[int], int]]  # name -> tokens, finish reason

K = ConstraintKind
STOP, LENGTH = inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_LENGTH
VOCAB, EOS = 512, (END_OF_TEXT_ID, IM_END_ID)
HAND_WRITTEN = json.loads(Path(__file__).with_name("json_schemas.json").read_text(encoding="utf-8"))
NUM_GENERATED = 60
MAX_TOKENS = 240
BLOCK_BYTES = 2048  # of 4 tokens


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers_logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("constrained")
    make_model(directory, ModelSpec(arch="qwen3", vocab_size=VOCAB, max_position_embeddings=512))
    return directory


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def generated_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema whose instances are short: a random model must come to its end."""
    leaves = [
        lambda: {"type": "integer", "minimum": (low := rng.randint(-99, 99)), "maximum": low + rng.randint(0, 300)},
        lambda: {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 6)},
        lambda: {"type": "string", "pattern": rng.choice(["^[a-z]{2,4}$", "^\\d{3}$", "^(ab|cd){1,2}$", "^x?y?z$"])},
        lambda: {"enum": rng.sample(["a", "b", 1, 2.5, None, True, "long value", [1]], rng.randint(1, 4))},
        lambda: {"type": rng.choice(["boolean", "null"])},
        lambda: {"const": rng.choice(["c", 0, [1, 2], {"k": "v"}])},
    ]
    if depth == 3 or rng.random() < 0.25 * depth:
        return rng.choice(leaves)()
    kind = rng.randrange(4)
    if kind == 0:
        low = rng.randint(0, 2)
        high = low + rng.randint(0, 2)
        return {"type": "array", "items": generated_schema(rng, depth + 1), "minItems": low, "maxItems": high}
    if kind == 1:
        kinds = rng.sample(["integer", "boolean", "null"], 2)
        options: list[dict[str, Any]] = [{"type": one} for one in kinds]
        return {"anyOf": [*options, generated_schema(rng, depth + 1)]}
    names = rng.sample(["id", "name", "a b", "ключ", "x_1", "tags"], rng.randint(1, 3))
    properties = {name: generated_schema(rng, depth + 1) for name in names}
    required = [name for name in names if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def schema_suite() -> dict[str, dict[str, Any]]:
    rng = random.Random(7)
    return HAND_WRITTEN | {f"generated {n}": generated_schema(rng) for n in range(NUM_GENERATED)}


def biases(tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    """What a model learns and random weights have not: to leave out spaces, to close what is open, to end."""
    found = {token: 8.0 for token in EOS}
    for token in range(VOCAB):
        text = tokenizer.decode([token], skip_special_tokens=False)
        if text and not text.strip():
            found[token] = -20.0
        elif set(text) <= set('"]},:'):
            found[token] = 2.0
    return tuple(sorted(found.items()))


def sampling(constraint: Constraint, seed: int | None, tokenizer: Tokenizer, **changes: Any) -> SamplingParams:
    """Greedy without a seed."""
    drawn: dict[str, Any] = {} if seed is None else {"temperature": 0.9, "top_p": 0.95, "seed": seed}
    base = SamplingParams(max_tokens=MAX_TOKENS, constraint=constraint, eos_token_ids=EOS, logit_bias=biases(tokenizer))
    return replace(base, **drawn, **changes)


async def serve(cluster: Any, asked: dict[str, SamplingParams], prompts: dict[str, list[int]]) -> Outputs:
    """All at once; the output of each."""
    (d,) = cluster.decode
    keys = {name: SequenceKey(f"{name} {len(cluster.prefill)}") for name in asked}
    for name, key in keys.items():
        if cluster.prefill:
            cluster.split(key, cluster.prefill[0], d, prompts[name], asked[name])
        else:
            d.submit(key, pb.SEQUENCE_MODE_FULL, prompts[name], asked[name])

    def is_over(key: SequenceKey) -> bool:
        return any(key in wire.finished or key in wire.failed for wire in cluster.wires)

    for key in keys.values():
        await d.until(lambda key=key: is_over(key), 60.0) if not cluster.prefill else await _either(cluster, key)
    outputs = {}
    for name, key in keys.items():
        assert not any(key in wire.failed for wire in cluster.wires), (
            f"{name}: {[w.failed.get(key) for w in cluster.wires]}"
        )
        merged = {index: token for wire in cluster.wires for index, token in wire.tokens.get(key, {}).items()}
        assert sorted(merged) == list(range(len(merged)))
        reason = next(wire.finished[key] for wire in reversed(cluster.wires) if key in wire.finished)
        outputs[name] = [merged[index] for index in range(len(merged))], reason
    await cluster.settled()
    cluster.preemptions = cluster.decode[0].built.core.scheduler.num_preemptions
    return outputs


async def _either(cluster: Any, key: SequenceKey) -> None:
    """A sequence that ends at token 1 ends on P."""
    ends = [
        asyncio.ensure_future(wire.until(lambda wire=wire: key in wire.finished or key in wire.failed, 60.0))
        for wire in cluster.wires
    ]
    done, rest = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for one in rest:
        one.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for one in done:
        one.result()


def split_and_colocated(
    launch_workers: Launch, model: Path, asked: dict[str, SamplingParams], preempts: bool = False, **shape: Any
) -> tuple[Outputs, Outputs]:
    rng = random.Random(5)
    prompts = {name: [rng.randrange(4, VOCAB) for _ in range(rng.randint(1, 20))] for name in asked}

    async def run() -> tuple[Outputs, Outputs]:
        settings = {"model": model, "max_num_seqs": 64, "kv_bytes": 32 << 20, "block_size": 16, **shape}
        async with launch_workers(1, 1, **settings) as split:
            first = await serve(split, asked, prompts)
        async with launch_workers(0, 1, **settings) as one:
            second = await serve(one, asked, prompts)
        assert preempts == (split.preemptions > 0) == (one.preemptions > 0)
        return first, second

    return asyncio.run(run())


def text_of(tokenizer: Tokenizer, token_ids: Iterable[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def test_every_schema_is_obeyed_split_and_colocated(launch_workers: Launch, model: Path, tokenizer: Tokenizer) -> None:
    """Over 100 schemas, half of them drawn: whole outputs are valid, cut ones could still become so, splits agree."""
    suite = schema_suite()
    assert len(suite) >= 100
    asked = {}
    for number, (name, schema) in enumerate(suite.items()):
        constraint = Constraint(K.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))
        assert not problem_of(constraint), f"{name}: {problem_of(constraint)}"
        asked[name] = sampling(constraint, number if number % 2 else None, tokenizer)
    split, colocated = split_and_colocated(launch_workers, model, asked)
    assert split == colocated
    compiler = GrammarCompiler(model, VOCAB)
    whole = 0
    for name, (tokens, reason) in split.items():
        if reason == STOP:
            assert tokens[-1] in EOS
            value = json.loads(text_of(tokenizer, tokens))
            errors = Draft202012Validator(suite[name], format_checker=Draft202012Validator.FORMAT_CHECKER).iter_errors(
                value
            )
            assert not list(errors), f"{name}: {value}"
            whole += 1
        else:
            assert reason == LENGTH and len(tokens) == MAX_TOKENS
            compiler.matcher(asked[name].constraint, EOS).allowed(tokens, 0)  # type: ignore[arg-type]
    assert whole >= 0.9 * len(suite), f"only {whole} of {len(suite)} came to their end"


def test_regex_choice_and_grammar(launch_workers: Launch, model: Path, tokenizer: Tokenizer) -> None:
    """The other languages, each judged by another reader of it."""
    arithmetic = 'start: term (("+" | "*") term){0,2}\nterm: /[0-9]{1,3}/ | "(" term "+" term ")"'
    judges: dict[str, tuple[Constraint, Callable[[str], bool]]] = {
        "regex": (Constraint(K.REGEX, "[a-c]{3}-\\d{2,4}"), lambda t: bool(re.fullmatch(r"[a-c]{3}-\d{2,4}", t))),
        "unicode": (Constraint(K.REGEX, "(héllo|日本){1,2}"), lambda t: bool(re.fullmatch("(héllo|日本){1,2}", t))),
        "choice": (
            Constraint(K.CHOICE, '["yes","no","may be","ja\\"so"]'),
            lambda t: t in ("yes", "no", "may be", 'ja"so'),
        ),
        "one choice": (Constraint(K.CHOICE, '["only"]'), lambda t: t == "only"),
        "lark": (Constraint(K.GRAMMAR, arithmetic), lambda t: bool(re.fullmatch(r"[0-9+*()]+", t)) and eval_ok(t)),
        "gbnf": (Constraint(K.GRAMMAR, 'root ::= "<" [a-z]{1,4} ">"'), lambda t: bool(re.fullmatch("<[a-z]{1,4}>", t))),
        "object": (Constraint(K.JSON_OBJECT), lambda t: isinstance(json.loads(t), dict)),
    }
    asked = {
        f"{name} {seed}": sampling(constraint, seed, tokenizer)
        for name, (constraint, _) in judges.items()
        for seed in (None, 1, 2)
    }
    split, colocated = split_and_colocated(launch_workers, model, asked)
    assert split == colocated
    for name, (tokens, reason) in split.items():
        kind = name.rpartition(" ")[0]
        if reason == STOP:
            assert judges[kind][1](text_of(tokenizer, tokens)), f"{name}: {text_of(tokenizer, tokens)!r}"
        else:
            assert kind in ("object", "lark"), f"{name} did not end"


def eval_ok(text: str) -> bool:
    """Whether it is an arithmetic expression with balanced parentheses."""
    compile(re.sub(r"\b0+(?=\d)", "", text), "expression", "eval")
    return True


def test_what_is_handed_off_goes_on_with_preemption_chunks_and_neighbours(
    launch_workers: Launch, model: Path, tokenizer: Tokenizer
) -> None:
    """A pool too small for all: preempted sequences are computed again, and go on in their constraint."""
    constraint = Constraint(K.REGEX, "([a-z]{1,9}, ){6}[0-9]{3}")
    asked = {f"{n}": sampling(constraint, n, tokenizer) for n in range(12)}
    asked |= {f"free {n}": SamplingParams(max_tokens=30, temperature=1.0, seed=n, eos_token_ids=EOS) for n in range(6)}
    tight = {
        "kv_bytes": 80 * BLOCK_BYTES,
        "block_size": 4,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 32,
        "max_model_len": 128,
    }
    split, colocated = split_and_colocated(launch_workers, model, asked, preempts=True, **tight)
    assert split == colocated
    for name, (tokens, reason) in split.items():
        if not name.startswith("free") and reason == STOP:
            assert re.fullmatch("([a-z]{1,9}, ){6}[0-9]{3}", text_of(tokenizer, tokens))


def test_a_resumed_attempt_goes_on_where_the_output_was(
    launch_workers: Launch, model: Path, tokenizer: Tokenizer
) -> None:
    """Tokens that were delivered before are output, not prompt: the rest is what it would have been."""
    constraint = Constraint(K.JSON_SCHEMA, json.dumps(HAND_WRITTEN["invoice"]))
    params = sampling(constraint, 3, tokenizer)

    async def run() -> tuple[list[int], list[int]]:
        async with launch_workers(0, 1, model=model, block_size=16, kv_bytes=32 << 20) as one:
            (d,) = one.decode
            whole, resumed = SequenceKey("whole"), SequenceKey("resumed")
            d.submit(whole, pb.SEQUENCE_MODE_FULL, [5, 6, 7], params)
            await d.until(lambda: whole in d.finished, 60.0)
            tokens = [d.tokens[whole][index] for index in range(len(d.tokens[whole]))]
            d.submit(resumed, pb.SEQUENCE_MODE_FULL, [5, 6, 7], params, output=tokens[:20])
            await d.until(lambda: resumed in d.finished, 60.0)
            assert min(d.tokens[resumed]) == 20
            return tokens, tokens[:20] + [d.tokens[resumed][index] for index in range(20, len(tokens))]

    whole, resumed = asyncio.run(run())
    assert whole == resumed


def test_an_engine_without_constraints_refuses_by_name(launch_workers: Launch) -> None:
    """The mock engine's tokens are no text; the request fails, and nothing of it is left on either side."""

    async def run() -> None:
        async with launch_workers(1, 1) as cluster:
            key = SequenceKey("constrained")
            p, d = cluster.prefill[0], cluster.decode[0]
            params = SamplingParams(max_tokens=4, constraint=Constraint(K.JSON_OBJECT), eos_token_ids=(1,))
            cluster.split(key, p, d, [1, 2, 3], params)
            await p.until(lambda: key in p.failed)
            await d.until(lambda: key in d.failed)
            assert p.failed[key].status == "UNIMPLEMENTED"
            assert "takes no constraints" in p.failed[key].message
            await cluster.settled()

    asyncio.run(run())


def test_an_abort_while_the_constraint_compiles_leaves_nothing(launch_workers: Launch, model: Path) -> None:
    """The sequence never reaches the engine, and the other side lets go too."""

    async def run() -> None:
        async with launch_workers(1, 1, model=model, block_size=16) as cluster:
            p, d = cluster.prefill[0], cluster.decode[0]
            for n in range(8):
                key = SequenceKey(f"gone-{n}")
                schema = {"enum": [f"value {n} {i}" for i in range(3000)]}
                constraint = Constraint(K.JSON_SCHEMA, json.dumps(schema))
                cluster.split(
                    key, p, d, [5, 6, 7], SamplingParams(max_tokens=9, constraint=constraint, eos_token_ids=EOS)
                )
                d.abort(key)
                p.abort(key)
            await cluster.settled()

    asyncio.run(run())


def test_a_compiler_that_breaks_fails_its_own_sequence() -> None:
    """A panic of Rust is no Exception; the next constraint is compiled all the same."""

    class Panic(BaseException):
        pass

    class Compiler:
        def matcher(self, constraint: Constraint, eos_token_ids: tuple[int, ...]) -> Any:
            if constraint.text == "good":
                return "matcher"
            raise Panic

    async def run() -> None:
        desk = ConstraintDesk(Compiler())
        with pytest.raises(InvariantViolation, match="Panic"):
            await desk.matcher(SamplingParams(max_tokens=1, constraint=Constraint(K.REGEX, "bad")))
        good: Any = await desk.matcher(SamplingParams(max_tokens=1, constraint=Constraint(K.REGEX, "good")))
        assert good == "matcher"
        desk.close()

    asyncio.run(run())


class HeldCompiler:
    """Compiles "slow" when it is let go, everything else at once."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def matcher(self, constraint: Constraint, eos_token_ids: tuple[int, ...]) -> Any:
        if constraint.text == "slow":
            self.go_on.wait(30.0)
        return constraint.text


def regex(text: str) -> SamplingParams:
    return SamplingParams(max_tokens=1, constraint=Constraint(K.REGEX, text))


def test_a_slow_constraint_does_not_keep_others_waiting() -> None:
    async def run() -> None:
        compiler = HeldCompiler()
        desk = ConstraintDesk(compiler)
        slow = asyncio.create_task(desk.matcher(regex("slow")))
        await asyncio.sleep(0)
        quick: Any = [await desk.matcher(regex(f"quick {n}")) for n in range(3)]
        assert quick == ["quick 0", "quick 1", "quick 2"] and not slow.done()
        compiler.go_on.set()
        last: Any = await slow
        assert last == "slow"
        desk.close()

    asyncio.run(run())


def test_constraints_that_wait_are_bounded_in_number_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is refused at once; those that waited too long make room."""

    async def run() -> None:
        compiler = HeldCompiler()
        desk = ConstraintDesk(compiler)
        monkeypatch.setattr(constraints, "TIMEOUT_S", 0.2)
        waiting = [asyncio.create_task(desk.matcher(regex("slow"))) for _ in range(NUM_THREADS + MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match=f"{MAX_WAITING} constraints wait to be compiled"):
            await desk.matcher(regex("one too many"))
        late = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, CapacityError) and "within 0.2 s" in one.message for one in late)
        compiler.go_on.set()
        after: Any = await desk.matcher(regex("after"))
        assert after == "after"
        desk.close()

    asyncio.run(run())


def test_threads_that_compile_at_once_share_what_is_kept(model: Path) -> None:
    """More constraints than are kept, each from several threads: all of them come, and the number kept stays."""
    compiler = GrammarCompiler(model, VOCAB)
    asked = [Constraint(K.REGEX, f"[ab]{{{n % (MAX_KEPT + 9) + 1}}}") for n in range(4 * MAX_KEPT)]
    with ThreadPoolExecutor(4) as pool:
        matchers = list(pool.map(lambda one: compiler.matcher(one, EOS), asked))
    assert len(matchers) == len(asked) and len(compiler._kept) == MAX_KEPT
