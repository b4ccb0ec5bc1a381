"""The turns of a chat on a split cluster: computed where the last answer is, with the same tokens as anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduling.prefix_directory import CHUNK_TOKENS

NUM_TURNS, ANSWER_TOKENS, LIMIT = 5, 40, 256


@pytest.mark.e2e
def test_a_chat_stays_on_its_decode_worker_and_its_tokens_do_not_change(
    serve: Callable[..., Any], tiny_model: Path, make_request: Callable[..., Any], make_prompts: Any
) -> None:
    """Another tenant's same prompts find nothing cached, and travel."""
    flags = ("--prefill", "2", "--decode", "2", "--local-prefill-max-tokens", str(LIMIT), "--dtype", "float32")
    first, *questions = make_prompts(7, (600, *[90] * (NUM_TURNS - 1)))
    with serve(tiny_model, *flags) as server:
        history, stayed, decode = list(first), 0, ""
        for turn in range(NUM_TURNS):
            answer = server.generate(make_request(history, ANSWER_TOKENS))
            other = server.generate(make_request(history, ANSWER_TOKENS, tenant=f"other-{turn}"))
            assert answer.tokens == other.tokens, f"turn {turn}"
            assert other.complete.timing.prefill_worker != other.complete.timing.decode_worker
            assert other.complete.usage.cached_tokens == 0
            timing, cached = answer.complete.timing, answer.complete.usage.cached_tokens
            if timing.prefill_worker == timing.decode_worker:
                stayed += 1
                assert timing.transfer_s == 0.0 and timing.decode_worker == decode
                known = len(history) - len(questions[turn - 1]) - 1  # all but the question and one token
                assert cached >= known - known % CHUNK_TOKENS
            decode = timing.decode_worker
            history += answer.tokens + (questions[turn] if turn < NUM_TURNS - 1 else [])
        assert stayed >= 1
        server.wait_all_blocks_free()
