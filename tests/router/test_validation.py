"""What a draft becomes: defaults, limits, deadlines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pdserve.errors import BadSampling, DeadlineExceeded, PromptTooLong
from pdserve.slo import Slo
from router.interface import GenerationDefaults
from router.limits import FrontConfig, Limits
from router.validation import (
    RequestDraft,
    SamplingDraft,
    SloDraft,
    check_prompt_texts,
    check_prompt_tokens,
    deadline_after,
    load_generation_defaults,
    resolve_sampling,
    resolve_slo,
)


def draft(http=True, **asked):
    return RequestDraft(
        (), SamplingDraft(**asked), 1.0 if http else 0.0, 16 if http else None, use_generation_config=http
    )


def test_the_checkpoints_defaults_count_on_http_only(card):
    tuned = replace(card, generation_defaults=GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20))
    http = resolve_sampling(draft(), 10, tuned, Limits())
    grpc = resolve_sampling(draft(http=False), 10, tuned, Limits())
    assert (http.temperature, http.top_p, http.top_k) == (0.6, 0.9, 20)
    assert (grpc.temperature, grpc.top_p, grpc.top_k) == (0.0, 1.0, 0)
    asked = resolve_sampling(draft(temperature=0.0, top_k=0), 10, tuned, Limits())
    assert asked.greedy and asked.top_k == 0  # a client's zero is not absence


def test_max_tokens_is_never_clamped_when_asked_and_always_when_a_default(card):
    assert resolve_sampling(draft(), 250, card, Limits()).max_tokens == 6
    assert resolve_sampling(draft(max_tokens=6), 250, card, Limits()).max_tokens == 6
    with pytest.raises(BadSampling, match="limit 6"):
        resolve_sampling(draft(max_tokens=7), 250, card, Limits())


def test_a_temperature_too_small_to_divide_by_is_greedy(card):
    assert resolve_sampling(draft(temperature=1e-9), 1, card, Limits()).greedy


def test_a_top_k_of_the_whole_vocabulary_is_off(card):
    assert resolve_sampling(draft(top_k=512), 1, card, Limits()).top_k == 0
    assert resolve_sampling(draft(top_k=511), 1, card, Limits()).top_k == 511


def test_without_a_seed_each_request_gets_its_own(card):
    seeds = {resolve_sampling(draft(), 1, card, Limits()).seed for _ in range(10)}
    assert len(seeds) == 10
    assert resolve_sampling(draft(seed=0), 1, card, Limits()).seed == 0


def test_a_long_text_is_refused_before_it_is_tokenized(card):
    with pytest.raises(PromptTooLong, match="at least 300 tokens, limit 255"):
        check_prompt_texts([("prompt", "x" * 1500)], "prompt", card, Limits(), max_token_chars=5)
    assert check_prompt_texts([("prompt", "x" * 1275)], "prompt", card, Limits(), max_token_chars=5) == 1275


def test_the_servers_own_prompt_limit_stands_beside_the_contexts(card):
    with pytest.raises(PromptTooLong, match="limit 8"):
        check_prompt_tokens([5] * 9, "prompt", card, Limits(max_prompt_tokens=8))


def test_deadlines():
    limits = Limits(default_deadline_s=60, max_deadline_s=100)
    assert deadline_after(5.0, None, limits) == 65.0
    assert deadline_after(5.0, 7.0, limits) == 12.0
    assert deadline_after(5.0, 1e9, limits) == 105.0
    for late in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            deadline_after(5.0, late, limits)


def test_thresholds_come_from_the_request_then_its_class():
    config = FrontConfig(slo_classes={"default": Slo(), "chat": Slo("chat", 0.5, 0.05)})
    assert resolve_slo(SloDraft("chat"), config) == Slo("chat", 0.5, 0.05)
    assert resolve_slo(SloDraft("chat", ttft_s=1.0), config) == Slo("chat", 1.0, 0.05)
    assert resolve_slo(SloDraft("nobody", tpot_s=0.1), config) == Slo("default", None, 0.1)


def test_generation_config_is_read_and_nonsense_in_it_left_out(tmp_path):
    assert load_generation_defaults(tmp_path) == GenerationDefaults()
    file = tmp_path / "generation_config.json"
    file.write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 99, "do_sample": True})
    )
    assert load_generation_defaults(tmp_path) == GenerationDefaults(0.6, 0.95, 20, None, None, 99)
    file.write_text(json.dumps({"temperature": -1, "top_p": True, "top_k": "5", "min_p": None, "max_new_tokens": 0}))
    assert load_generation_defaults(tmp_path) == GenerationDefaults()
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        load_generation_defaults(tmp_path)
