"""Sampling, latency and deadline: defaults resolved, every value in range."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from pdserve.errors import BadSampling, DeadlineExceeded, RequestError
from pdserve.sampling import SamplingParams
from pdserve.slo import Slo
from router.interface import GenerationDefaults, ModelCard
from router.limits import FrontConfig, Limits
from router.validation.constraint import check_constraint
from router.validation.draft import RequestDraft, SamplingDraft, SloDraft
from router.validation.identity import check_name
from router.validation.prompt import check_token_ids, check_unicode

MAX_SEED = 2**64 - 1
GREEDY_BELOW = 1e-5
"""A temperature under this is greedy: dividing logits by less overflows float32 (vLLM draws the line here too)."""

TOO_LATE_S = 0.001
"""Time left that nothing can be done in; a deadline that had passed on the client arrives as less than this."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a field may be."""

    low: float
    high: float
    low_open: bool = False

    def check(self, field: str, value: float) -> None:
        above = value > self.low if self.low_open else value >= self.low
        if not (math.isfinite(value) and above and value <= self.high):
            edge = "more than" if self.low_open else "at least"
            shown = f"{value:g}" if isinstance(value, float) else f"{value:,}"
            raise BadSampling(
                f"{field} is {shown}, allowed {edge} {_plain(self.low)} and at most {_plain(self.high)}", field=field
            )


def _plain(bound: float) -> str:
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def resolve_sampling(draft: RequestDraft, num_prompt_tokens: int, card: ModelCard, limits: Limits) -> SamplingParams:
    """The parameters of choice 0 over a prompt of this many tokens; without a seed one is drawn.

    Raises BadSampling naming the field, its value and what is allowed.
    """
    asked, prefix = draft.sampling, draft.sampling_prefix
    defaults = card.generation_defaults if draft.use_generation_config else GenerationDefaults()
    temperature = _number(
        prefix + "temperature", (asked.temperature, defaults.temperature, draft.default_temperature),
        Range(0, limits.max_temperature),
    )  # fmt: skip
    top_k = _first(asked.top_k, defaults.top_k, 0)
    if top_k < -1:
        raise BadSampling(f"{prefix}top_k is {top_k:,}, allowed 0 and -1 (off) and more", field=prefix + "top_k")
    max_tokens = _max_tokens(draft, defaults, num_prompt_tokens, card)
    _check_ends(asked, max_tokens, card, limits)
    if asked.logprobs is not None:
        Range(0, limits.max_logprobs).check("logprobs", asked.logprobs)
    if asked.seed is not None and not 0 <= asked.seed <= MAX_SEED:
        raise BadSampling(f"{prefix}seed is out of range, allowed 0 to 2^64 - 1", field=prefix + "seed")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_number(prefix + "top_p", (asked.top_p, defaults.top_p, 1.0), Range(0, 1, low_open=True)),
        top_k=top_k if 0 < top_k < card.vocab_size else 0,
        min_p=_number(prefix + "min_p", (asked.min_p, defaults.min_p, 0.0), Range(0, 1)),
        repetition_penalty=_number(
            prefix + "repetition_penalty",
            (asked.repetition_penalty, defaults.repetition_penalty, 1.0),
            Range(0, 2, low_open=True),
        ),
        presence_penalty=_number(prefix + "presence_penalty", (asked.presence_penalty, 0.0), Range(-2, 2)),
        frequency_penalty=_number(prefix + "frequency_penalty", (asked.frequency_penalty, 0.0), Range(-2, 2)),
        seed=asked.seed if asked.seed is not None else secrets.randbits(63),
        logit_bias=_logit_bias(asked, prefix + "logit_bias", card, limits),
        min_tokens=asked.min_tokens or 0,
        stop_token_ids=tuple(dict.fromkeys(asked.stop_token_ids)),
        eos_token_ids=() if asked.ignore_eos else card.eos_token_ids,
        logprobs=asked.logprobs,
        constraint=check_constraint(asked, card),
    )


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _number(field: str, values: tuple[float | None, ...], allowed: Range) -> float:
    """The first value that is there, in range."""
    value = next(value for value in values if value is not None)
    allowed.check(field, value)
    return float(value)


def _max_tokens(draft: RequestDraft, defaults: GenerationDefaults, num_prompt_tokens: int, card: ModelCard) -> int:
    """What the client asks must fit; a default only wishes."""
    room = card.max_model_len - num_prompt_tokens
    asked = draft.sampling.max_tokens
    if asked is None:
        wish = draft.default_max_tokens or defaults.max_tokens or room
        return min(wish, room)
    if asked < 1:
        raise BadSampling(f"max_tokens is {asked:,}, allowed at least 1", field="max_tokens")
    if asked > room:
        raise BadSampling(
            f"max_tokens is {asked:,}, limit {room:,} (context {card.max_model_len:,} less {num_prompt_tokens:,} of"
            " the prompt)",
            field="max_tokens",
        )
    return asked


def _check_ends(asked: SamplingDraft, max_tokens: int, card: ModelCard, limits: Limits) -> None:
    """Everything that may end an answer."""
    if asked.min_tokens is not None:
        Range(0, max_tokens).check("min_tokens", asked.min_tokens)
    _check_count("stop", len(asked.stop), limits.max_stop, "strings")
    for index, stop in enumerate(asked.stop):
        field = f"stop[{index}]"
        if not stop:
            raise BadSampling(f"{field} is empty", field=field)
        _check_count(field, len(stop), limits.max_stop_chars, "characters")
        check_unicode(field, stop)
    _check_count("stop_token_ids", len(asked.stop_token_ids), limits.max_stop_token_ids, "ids")
    if asked.stop_token_ids:
        check_token_ids(asked.stop_token_ids, "stop_token_ids", card)


def _check_count(field: str, count: int, limit: int, what: str) -> None:
    if count > limit:
        raise BadSampling(f"{field} has {count:,} {what}, limit {limit:,}", field=field)


def _logit_bias(asked: SamplingDraft, field: str, card: ModelCard, limits: Limits) -> tuple[tuple[int, float], ...]:
    _check_count(field, len(asked.logit_bias), limits.max_logit_bias, "entries")
    for token_id, bias in asked.logit_bias:
        if not 0 <= token_id < card.vocab_size:
            raise BadSampling(f"{field} has id {token_id}, allowed 0 to {card.vocab_size - 1:,}", field=field)
        Range(-100, 100).check(f"{field}[{token_id}]", bias)
    return tuple(sorted((token_id, float(bias)) for token_id, bias in asked.logit_bias))


def resolve_slo(draft: SloDraft, config: FrontConfig) -> Slo:
    """Thresholds of the request, else of its class; a class that is not configured counts as "default"."""
    check_name("slo.class", draft.slo_class, config.limits)
    for field, value in (("slo.ttft_s", draft.ttft_s), ("slo.tpot_s", draft.tpot_s)):
        if value is not None:
            Range(0, config.limits.max_slo_s, low_open=True).check(field, value)
    name = draft.slo_class if draft.slo_class in config.slo_classes else "default"
    base = config.slo_classes.get(name, Slo())
    return Slo(
        slo_class=name,
        ttft_s=base.ttft_s if draft.ttft_s is None else draft.ttft_s,
        tpot_s=base.tpot_s if draft.tpot_s is None else draft.tpot_s,
    )


def check_priority(priority: int, limits: Limits) -> None:
    if abs(priority) > limits.max_priority:
        raise RequestError(
            f"priority is {priority:,}, allowed -{limits.max_priority:,} to {limits.max_priority:,}", field="priority"
        )


def deadline_after(received_s: float, time_left_s: float | None, limits: Limits) -> float:
    """The absolute deadline: the client's, at most max_deadline_s ahead; the server's default when there is none."""
    if time_left_s is None:
        return received_s + limits.default_deadline_s
    if time_left_s <= TOO_LATE_S:
        raise DeadlineExceeded("the deadline had passed when the request arrived")
    return received_s + min(time_left_s, limits.max_deadline_s)
