"""Masks: what a constraint allows after given tokens, computed beside the pass; a stuck one fails its own row only."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers

from deploy.models.byte_bpe import END_OF_TEXT_ID, IM_END_ID
from engine.grammar import MaskThread, mask_thread
from engine.grammar.compiler import GrammarCompiler
from engine.sampler import sample
from engine.selection import flags_of, keep
from pdserve.errors import BadSampling, CapacityError, InvariantViolation, RequestError, ServingError
from pdserve.sampling import Constraint, ConstraintKind, SampledToken, SamplingParams
from scheduling.step import SampleRequest

K = ConstraintKind
EOS = (END_OF_TEXT_ID, IM_END_ID)
VOCAB, PADDED = 512, 600
PROMPT = [7, 8, 9]


@pytest.fixture(scope="session")
def directory(tiny_dir: Callable[..., Path]) -> Path:
    return tiny_dir("llama")


@pytest.fixture(scope="session")
def compiler(directory: Path) -> GrammarCompiler:
    return GrammarCompiler(directory, PADDED)


@pytest.fixture(scope="session")
def ids(directory: Path) -> Callable[[str], list[int]]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def allowed(compiler: GrammarCompiler, regex: str, output: Sequence[int]) -> set[int]:
    matcher = compiler.matcher(Constraint(K.REGEX, regex), EOS)
    return set(np.flatnonzero(flags_of(matcher.allowed([*PROMPT, *output], len(PROMPT)), PADDED)).tolist())


def request(compiler: GrammarCompiler, regex: str, output: Sequence[int] = (), **params: Any) -> SampleRequest:
    constraint = Constraint(K.REGEX, regex)
    sampling = SamplingParams(max_tokens=50, constraint=constraint, eos_token_ids=EOS, **params)
    return SampleRequest(sampling, [*PROMPT, *output], len(PROMPT), compiler.matcher(constraint, EOS))


class SlowMatcher:
    """Stands for a native call that takes its time and the thread's CPU, as such a call would."""

    def __init__(self) -> None:
        self.release, self.entered = threading.Event(), threading.Event()
        self.num_calls = 0

    def allowed(self, token_ids: Sequence[int], num_prompt_tokens: int) -> bytes:
        self.num_calls += 1
        self.entered.set()
        deadline_s = time.monotonic() + 30.0
        while not self.release.is_set() and time.monotonic() < deadline_s:
            pass
        return b"\xff" * (PADDED // 8)


# ---- matchers ----


def test_only_tokens_that_continue_are_allowed_and_only_ends_at_the_end(
    compiler: GrammarCompiler, ids: Callable[[str], list[int]]
) -> None:
    """Padding ids and special tokens never are."""
    (a,), (b,) = ids("a"), ids("b")
    assert a in allowed(compiler, "a{2}b", []) and b not in allowed(compiler, "a{2}b", [])
    assert b in allowed(compiler, "a{2}b", [a, a])
    assert allowed(compiler, "a{2}b", [a, a, b]) == set(EOS)
    assert allowed(compiler, "a*", []) >= {a, *EOS}
    anything = allowed(compiler, "(.|\\n)*", [])
    assert max(anything) < VOCAB and not anything & {0, 2}, "padding or another special token"


def test_a_matcher_follows_from_whatever_it_has_seen(
    compiler: GrammarCompiler, ids: Callable[[str], list[int]]
) -> None:
    """Token by token, several at once after a handoff, and from nothing after a retry: the same masks."""
    schema = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    constraint = Constraint(K.JSON_SCHEMA, schema)
    tokens = PROMPT + ids('{"name": "a\\n b"}')
    step_by_step = compiler.matcher(constraint, EOS)
    masks = [step_by_step.allowed(tokens[:n], len(PROMPT)) for n in range(len(PROMPT), len(tokens) + 1)]
    jumping = compiler.matcher(constraint, EOS)
    for n in (3, len(tokens) // 2, len(tokens)):
        assert jumping.allowed(tokens[:n], len(PROMPT)) == masks[n - len(PROMPT)]
        assert compiler.matcher(constraint, EOS).allowed(tokens[:n], len(PROMPT)) == masks[n - len(PROMPT)]
        assert jumping.allowed(tokens[:n], len(PROMPT)) == masks[n - len(PROMPT)], "asked again: a step was lost"


def test_tokens_that_break_the_constraint_are_our_fault(
    compiler: GrammarCompiler, ids: Callable[[str], list[int]]
) -> None:
    matcher = compiler.matcher(Constraint(K.REGEX, "a+"), EOS)
    with pytest.raises(InvariantViolation, match="output token 0"):
        matcher.allowed([*PROMPT, *ids("b")], len(PROMPT))


def test_a_vocabulary_larger_than_the_logits_is_cut(directory: Path, ids: Callable[[str], list[int]]) -> None:
    """Tokens that the model has no logits for are never chosen."""
    matcher = GrammarCompiler(directory, 300).matcher(Constraint(K.REGEX, "[a-z ]+"), EOS)
    found = np.flatnonzero(flags_of(matcher.allowed(PROMPT, len(PROMPT)), 300))
    assert len(found) and found.max() < 300


def test_what_cannot_be_compiled_is_the_callers_fault(compiler: GrammarCompiler, tmp_path: Path) -> None:
    with pytest.raises(BadSampling, match="cannot be used"):
        compiler.matcher(Constraint(K.REGEX, "(a"), EOS)
    with pytest.raises(BadSampling, match="end-of-sequence"):
        compiler.matcher(Constraint(K.REGEX, "a"), ())
    with pytest.raises(RequestError, match="tokenizer cannot be constrained"):
        GrammarCompiler(tmp_path, VOCAB).matcher(Constraint(K.REGEX, "a"), EOS)


def test_a_sentencepiece_vocabulary_spells_bytes_and_spaces(tmp_path: Path) -> None:
    """Bytes that stand for what has no token, and the mark that stands for a space."""
    words = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "▁b", "é"]
    vocab = {word: token for token, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "b")], byte_fallback=True, unk_token="<unk>"))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    matcher = GrammarCompiler(tmp_path, len(words)).matcher(Constraint(K.REGEX, "a b|é|日"), (2,))

    def follow(*output: str) -> set[str]:
        tokens = [*PROMPT, *(vocab[word] for word in output)]
        return {words[token] for token in np.flatnonzero(flags_of(matcher.allowed(tokens, 3), len(words)))}

    assert follow() == {"a", "<0x61>", "é", "<0xC3>", "<0xE6>"}
    assert follow("a") == {"▁b"}, "text that is forced has the tokenizer's own tokens"
    assert follow("a", "▁b") == {"</s>"}


def test_compiled_constraints_are_kept_and_the_oldest_goes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.grammar.compiler.MAX_KEPT", 2)
    own = GrammarCompiler(directory, VOCAB)
    for regex in ("a", "b", "a", "c"):
        own.matcher(Constraint(K.REGEX, regex), EOS)
    assert [constraint.text for constraint, _ in own._kept] == ["a", "c"]


# ---- sampling ----


def test_only_allowed_tokens_are_sampled_whatever_else_is_asked(
    compiler: GrammarCompiler, ids: Callable[[str], list[int]]
) -> None:
    """Bias, penalties, top-k and the random number choose among what the constraint leaves; others are untouched."""
    digits = {token for digit in "0123456789" for token in ids(digit)}
    forbidden = next(token for token in range(4, VOCAB) if token not in digits)
    logits = torch.randn(6, PADDED, generator=torch.Generator().manual_seed(1))
    logits[:, forbidden] = 50.0
    requests = [
        request(compiler, "[0-9]"),
        request(compiler, "[0-9]", temperature=1.0, seed=3, top_k=5, top_p=0.8, min_p=0.01),
        request(compiler, "[0-9]", logit_bias=((forbidden, 100.0),), repetition_penalty=1.5, presence_penalty=1.0),
        request(compiler, "[0-9]", temperature=2.0, seed=4, logprobs=2),
        request(compiler, "[0-9]", ids("5")),
        SampleRequest(SamplingParams(max_tokens=5), PROMPT, len(PROMPT)),
    ]
    masks = MaskThread()
    masks.begin(requests)
    results = sample(logits, requests, masks.take())
    tokens = [one.token_id for one in results if isinstance(one, SampledToken)]
    assert len(tokens) == 6
    assert set(tokens[:4]) <= digits and tokens[4] in EOS and tokens[5] == forbidden
    of_digits = sorted(digits)
    assert tokens[0] == of_digits[int(logits[0, of_digits].argmax())]
    third = results[3]
    assert isinstance(third, SampledToken) and third.logprobs is not None
    assert third.logprobs.top[0][0] == forbidden, "log-probabilities are the model's own, before the constraint"


def test_a_row_without_an_allowed_token_fails_alone(compiler: GrammarCompiler) -> None:
    requests = [request(compiler, "a"), SampleRequest(SamplingParams(max_tokens=5), PROMPT, 3)]
    empty, failed = sample(torch.zeros(2, PADDED), requests, {0: bytes(PADDED // 8)}), BadSampling("no")
    assert isinstance(empty[0], BadSampling) and isinstance(empty[1], SampledToken)
    assert sample(torch.zeros(2, PADDED), requests, {0: failed})[0] is failed


def test_flags_of_bits() -> None:
    """Lowest bit first; counts that end within a byte, or beyond the bytes."""
    rng = np.random.default_rng(0)
    for count in (1, 7, 8, 9, 600, 700):
        bits = rng.integers(0, 2, 640).astype(bool)
        packed = np.packbits(bits, bitorder="little").tobytes()
        there = bits[:count]
        assert flags_of(packed, count).tolist() == [*there.tolist(), *[False] * (count - len(there))]


def test_kept_scores_are_the_flagged_ones() -> None:
    """Together, or where they were with nothing beside them; the highest is at the same token either way."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=1000)
    for share in (0.0, 0.1, 0.7, 0.8, 1.0):
        flags = rng.random(1000) < share
        kept, positions = keep(scores, flags)
        places = np.flatnonzero(np.isfinite(kept)) if positions is None else positions
        assert places.tolist() == np.flatnonzero(flags).tolist()
        assert kept[np.isfinite(kept)].tolist() == scores[flags].tolist()


# ---- the thread ----


def test_a_stuck_mask_fails_its_own_row_and_the_others_go_on(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is left behind; while too many are, constraints are refused; when they come back, taken again."""
    monkeypatch.setattr(mask_thread, "MAX_CPU_S", 0.02)
    masks, slow = MaskThread(), [SlowMatcher() for _ in range(mask_thread.MAX_LEFT_BEHIND)]
    good = [request(compiler, "a"), request(compiler, "b")]

    def step(*requests: SampleRequest) -> dict[int, bytes | ServingError]:
        masks.begin(requests)
        return dict(masks.take())

    params = SamplingParams(max_tokens=5)
    for matcher in slow:
        results = step(good[0], SampleRequest(params, PROMPT, 3, matcher), good[1])
        assert isinstance(results[1], BadSampling)
        last = matcher is slow[-1]
        assert isinstance(results[0], bytes)
        assert isinstance(results[2], CapacityError if last else bytes)
    assert isinstance(step(good[0])[0], CapacityError)
    left_behind = list(masks._left_behind)
    for matcher in slow:
        matcher.release.set()
    for thread in left_behind:
        thread.join(30.0)
    assert isinstance(step(good[0])[0], bytes)
    assert step() == {} == step(SampleRequest(params, PROMPT, 3))


def test_two_threads_never_follow_one_constraint(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that comes back in the very moment when its row is given up takes no other row of that step."""
    monkeypatch.setattr(mask_thread, "MAX_CPU_S", 0.02)
    masks, stuck, other = MaskThread(), SlowMatcher(), SlowMatcher()

    def come_back(record: logging.LogRecord) -> bool:
        """When the engine says that it gives the row up."""
        stuck.release.set()
        other.entered.wait(0.2)
        other.release.set()
        return True

    monkeypatch.setattr(mask_thread.log, "filters", [come_back])
    params = SamplingParams(max_tokens=5)
    masks.begin([SampleRequest(params, PROMPT, 3, stuck), SampleRequest(params, PROMPT, 3, other)])
    results = masks.take()
    assert isinstance(results[1], bytes) and other.num_calls == 1


def test_a_library_that_panics_fails_its_own_row(compiler: GrammarCompiler) -> None:
    """A panic of Rust is no Exception; the thread lives on."""

    class Panic(BaseException):
        pass

    class Broken:
        def allowed(self, token_ids: Sequence[int], num_prompt_tokens: int) -> bytes:
            raise Panic

    masks, params = MaskThread(), SamplingParams(max_tokens=5)
    masks.begin([SampleRequest(params, PROMPT, 3, Broken()), request(compiler, "a")])
    results = masks.take()
    assert isinstance(results[0], InvariantViolation) and isinstance(results[1], bytes)


def test_masks_are_computed_while_the_engine_does_something_else() -> None:
    """`begin` returns at once."""
    masks, slow = MaskThread(), SlowMatcher()
    masks.begin([SampleRequest(SamplingParams(max_tokens=5), PROMPT, 3, slow)])
    assert slow.entered.wait(30.0)
    slow.release.set()
    assert isinstance(masks.take()[0], bytes)
