"""How a worker's share of a card is divided, and what is said when it is too small."""

from __future__ import annotations

import pytest

from pdserve.exit import ExitCode, StartError
from worker.gpu_memory import OUTSIDE_BYTES, CardShare, Need, check_free, kv_budget, out_of_memory

GIB = 1 << 30
CONTEXT = Need(8192, GIB)


def test_kv_gets_what_weights_steps_and_cuda_leave_of_the_share() -> None:
    """One worker on the card, and two that divide it: the shares together never exceed what was asked for."""
    whole = CardShare("cuda:0", 80 * GIB, 0.9)
    assert kv_budget(whole, 17 * GIB, CONTEXT) == 72 * GIB - 17 * GIB - OUTSIDE_BYTES
    half = CardShare("cuda:0", 80 * GIB, 0.45)
    left = kv_budget(half, 17 * GIB, CONTEXT)
    assert 2 * (left + 17 * GIB + OUTSIDE_BYTES) <= 0.9 * 80 * GIB


def test_exactly_one_context_is_enough() -> None:
    """And a byte less is not."""
    card = CardShare("cuda:0", 80 * GIB, 0.5)
    most = 40 * GIB - OUTSIDE_BYTES - CONTEXT.kv_bytes
    assert kv_budget(card, most, CONTEXT) == CONTEXT.kv_bytes
    with pytest.raises(StartError):
        kv_budget(card, most + 1, CONTEXT)


def test_too_little_is_told_with_what_is_needed_what_there_is_and_what_to_change() -> None:
    """One line, exit code 3."""
    card = CardShare("cuda:1", 24 * GIB, 0.45)
    with pytest.raises(StartError) as raised:
        kv_budget(card, 16 * GIB, CONTEXT)
    assert raised.value.exit_code is ExitCode.ENVIRONMENT and "\n" not in raised.value.message
    for part in (
        "cuda:1 has 24.00 GiB, of which this worker may use 10.80 GiB", "take 16.00 GiB", "CUDA itself 0.75 GiB",
        "one context of 8,192 tokens takes 1.00 GiB", "6.95 GiB too much", "--gpu-memory-utilization",
        "--max-model-len",
    ):  # fmt: skip
        assert part in raised.value.message


def test_a_card_that_others_use_is_told() -> None:
    """The pool does not fit into what is free, though the share would allow it."""
    card = CardShare("cuda:0", 80 * GIB, 0.9)
    check_free(card, 50 * GIB, 50 * GIB)
    with pytest.raises(StartError, match=r"pool is 55\.00 GiB; cuda:0 has 50\.00 GiB free of 80\.00 GiB: stop what"):
        check_free(card, 50 * GIB, 55 * GIB)


def test_an_allocation_that_fails_is_told() -> None:
    """What was being done, and what there is."""
    error = out_of_memory(CardShare("cuda:0", 8 * GIB, 0.9), "loading the weights", GIB // 2)
    assert error.message.startswith("loading the weights takes more memory than there is: cuda:0 has 8.00 GiB")
    assert "0.50 GiB is free" in error.message and error.exit_code is ExitCode.ENVIRONMENT
