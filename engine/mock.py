"""A runner that computes nothing: steps take the predicted time, KV is patterned words that tell whose they are.

Behind it stand the real scheduler, workers, protocol and transports (DESIGN section 4, mock engine). The KV of position
p is a hash of tokens 0..p, carried from slot to slot through the pool itself, and the next token is a function of the
last slot's word: one wrong, stale or foreign word gives a wrong token, and the check of every word finds it before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from pdserve.errors import InvariantViolation
from pdserve.kv_layout import KvLayout, LayerLayout
from pdserve.kv_memory import KvMemory
from pdserve.sampling import SampledToken, TokenLogprobs
from scheduling.latency import LatencyModel
from scheduling.step import SequenceStep, StepResult

Words = npt.NDArray[np.uint64]

KV_BYTES_PER_TOKEN = 64  # of a worker's mock engine
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64
_MASK = (1 << 64) - 1


def mock_layout(model: str, block_size: int, kv_bytes_per_token: int) -> KvLayout:
    """The layout of patterned KV: one layer, `kv_bytes_per_token` / 8 words per slot, at least one."""
    return KvLayout(model, "uint64", block_size, (LayerLayout(1, max(1, kv_bytes_per_token // 8), 0),))


class TokenHash:
    """h[p] = h[p-1] * M + (token[p] + 1) modulo 2**64, for whole runs of tokens at once."""

    def __init__(self, max_tokens: int) -> None:
        inverse = pow(_MULTIPLIER, -1, 1 << 64)
        self._powers = _powers(_MULTIPLIER, max_tokens)
        self._inverses = _powers(inverse, max_tokens)

    def run(self, before: int, token_ids: Seq[int]) -> Words:
        """Hashes after each of `token_ids`, [n], given the hash before the first."""
        n = len(token_ids)
        terms = (np.asarray(token_ids, np.uint64) + np.uint64(1)) * self._inverses[1 : n + 1]
        hashes: Words = (np.cumsum(terms, dtype=np.uint64) + np.uint64(before)) * self._powers[1 : n + 1]
        return hashes


def _powers(base: int, n: int) -> Words:
    """base**0 ... base**n modulo 2**64."""
    factors = np.full(n + 1, base, np.uint64)
    factors[0] = 1
    powers: Words = np.multiply.accumulate(factors)
    return powers


class MockRunner:
    """StepRunner over patterned KV; the pool is [num_blocks, slots, words] in `memory`."""

    def __init__(
        self, layout: KvLayout, memory: KvMemory, latency: LatencyModel, vocab_size: int, max_model_len: int
    ) -> None:
        self._block_size = layout.block_size
        words = layout.block_bytes // (8 * layout.block_size)
        self._pool: Words = np.frombuffer(memory.data, np.uint64).reshape(memory.num_blocks, layout.block_size, words)
        self._factors: Words = 2 * np.arange(words, dtype=np.uint64) + np.uint64(1)  # word 0 is the hash itself
        self._hash = TokenHash(max_model_len + 1)
        self._latency = latency
        self._vocab_size = vocab_size

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        """One step, in the predicted time; a sequence whose KV is not its own gets an InvariantViolation."""
        start_s = time.monotonic()
        results = [self._execute_one(step) for step in steps]
        left_s = start_s + self._predict_s(steps) - time.monotonic()
        if left_s > 0.0:
            time.sleep(left_s)
        return results

    def _predict_s(self, steps: Seq[SequenceStep]) -> float:
        decode = [s for s in steps if len(s.token_ids) == 1 and s.start > 0]
        tokens = sum(len(s.token_ids) for s in steps)
        context = sum(s.start + len(s.token_ids) for s in steps)
        return self._latency.step_s(tokens - len(decode), len(decode), context)

    def _execute_one(self, step: SequenceStep) -> StepResult:
        table = np.asarray(step.block_ids, np.int64)
        before = int(self._pool[table[(step.start - 1) // self._block_size], (step.start - 1) % self._block_size, 0]) \
            if step.start else 0  # fmt: skip
        hashes = self._hash.run(before, step.token_ids)
        positions = np.arange(step.start, step.start + len(step.token_ids))
        blocks, slots = table[positions // self._block_size], positions % self._block_size
        self._pool[blocks, slots] = hashes[:, None] * self._factors[None, :]
        if step.sample is None:
            return None
        wrong = self._first_wrong(step.sample.token_ids, table)
        if wrong is not None:
            return InvariantViolation(f"KV at position {wrong:,} belongs to another sequence")
        token = int(self._pool[blocks[-1], slots[-1], 0] >> np.uint64(17)) % self._vocab_size
        wanted = step.sample.sampling.logprobs
        return SampledToken(token, None if wanted is None else TokenLogprobs(token, 0.0, ((token, 0.0),)[:wanted]))

    def _first_wrong(self, token_ids: Seq[int], table: npt.NDArray[np.int64]) -> int | None:
        """First position whose words are not the sequence's own; None when every word is."""
        n = len(token_ids)
        expected = self._hash.run(0, token_ids)[:, None] * self._factors[None, :]
        stored = self._pool[table[: -(-n // self._block_size)]].reshape(-1, self._factors.size)[:n]
        if np.array_equal(stored, expected):
            return None
        return int(np.argmax((stored != expected).any(axis=1)))
