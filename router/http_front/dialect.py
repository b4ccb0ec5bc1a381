"""What is sent of a generation: the shapes of OpenAI's two endpoints, streamed and whole.

Dialect              id, usage, timing: what both share
  CompletionDialect  choices[].text, logprobs in parallel lists              (completion_dialect.py)
  ChatDialect        choices[].message / delta, logprobs in a list of objects      (chat_dialect.py)
"""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pdserve.sampling import TokenLogprobs
from pdserve.slo import Verdict
from router.choice import ChoiceEnd, ChoiceUpdate
from router.generation import Generation
from router.http_front.parsing import Asked
from router.http_front.problem import to_json
from router.interface import RouterRequest
from router.prompts import PromptEncoder
from router.text import Tokenizer

TEXT_MARK = "\ue000"
"""Stands for the text of an event, which is the last string in it that is not ours."""
USAGE = (
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d}}}'
)
"""How an event ends that says what was used so far."""
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has no number for (as vLLM)."""


@dataclasses.dataclass(slots=True)
class Whole:
    """One choice, collected from its updates."""

    logprobs: list[TokenLogprobs]
    end: ChoiceEnd | None = None


class Dialect(ABC):
    """Formats one generation; keeps what a stream has said so far."""

    id_prefix: str
    chunk_object: str
    whole_object: str

    def __init__(self, asked: Asked, generation: Generation, model: str, tokenizer: Tokenizer) -> None:
        self._asked = asked
        self._requests: Sequence[RouterRequest] = generation.requests
        self._tokenizer = tokenizer
        self._id = self.id_prefix + generation.request_id
        self._created = int(time.time())
        self._model = model
        self._num_tokens = [0] * len(generation.requests)
        self._cached_tokens = [0] * len(generation.requests)
        self._around_text: dict[int, tuple[bytes, bytes]] = {}  # choice -> an event's bytes before and after its text
        self._prompts = [n for n, one in enumerate(generation.requests) if one.sampling.choice_index == 0]
        self._prompt_tokens = sum(len(generation.requests[n].prompt_token_ids) for n in self._prompts)
        self._says_more = asked.return_token_ids or asked.calls_tools or self.with_logprobs

    async def prepare(self, prompts: PromptEncoder) -> None:  # noqa: B027 - a chat has nothing to prepare
        """Do what may take long; called once, before anything else."""

    # ---- streamed ----

    def event(self, update: ChoiceUpdate) -> bytes:
        """`chunk` as JSON. Events with nothing new but text differ in that and usage alone: the rest is made once."""
        if self._says_more or update.end is not None or self._num_tokens[update.index] == 0:
            return to_json(self.chunk(update))
        around = self._around_text.get(update.index)
        if around is None:
            whole = to_json(self.chunk(replace(update, text=TEXT_MARK)))
            head, _, tail = whole.rpartition(json.encoder.encode_basestring(TEXT_MARK).encode())
            if self._asked.continuous_usage:
                tail = tail.rpartition(b'"usage":')[0]
            around = self._around_text[update.index] = (head, tail)
        else:
            self._count(update)
        text = json.encoder.encode_basestring(update.text).encode()
        if self._asked.continuous_usage:
            return b"%b%b%b%b" % (around[0], text, around[1], USAGE % self._counts())
        return b"%b%b%b" % (around[0], text, around[1])

    def chunk(self, update: ChoiceUpdate) -> dict[str, Any]:
        """One event of the stream: the news of one choice."""
        is_first = self._num_tokens[update.index] == 0
        choice = self.streamed_choice(update, is_first)
        self._count(update)
        body = self._envelope(self.chunk_object, [choice])
        if self._asked.return_token_ids:
            choice["token_ids"] = list(update.token_ids)
            if is_first:
                self.add_prompt_ids(body, choice, self._requests[update.index].prompt_token_ids)
        if self._asked.continuous_usage:
            body["usage"] = self._usage()
        elif self._asked.include_usage:
            body["usage"] = None
        if update.end is not None:
            self._add_timing(body, [update.end])
        return body

    def usage_chunk(self, ends: Sequence[ChoiceEnd]) -> dict[str, Any]:
        """The last event, when usage was asked for."""
        body = self._envelope(self.chunk_object, [])
        body["usage"] = self._usage()
        self._add_timing(body, ends)
        return body

    # ---- whole ----

    def whole(self, choices: Sequence[Whole]) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        shown = []
        ends = []
        for index, collected in enumerate(choices):
            end = collected.end
            assert end is not None
            ends.append(end)
            choice = self.whole_choice(index, end, collected.logprobs)
            shown.append(choice)
            self._num_tokens[index], self._cached_tokens[index] = len(end.token_ids), end.cached_tokens
        body = self._envelope(self.whole_object, shown)
        if self._asked.return_token_ids:
            for choice, request, end in zip(shown, self._requests, ends, strict=True):
                choice["token_ids"] = list(end.token_ids)
                self.add_prompt_ids(body, choice, request.prompt_token_ids)
        body["usage"] = self._usage()
        self._add_timing(body, ends)
        return body

    # ---- each endpoint's own ----

    @abstractmethod
    def streamed_choice(self, update: ChoiceUpdate, is_first: bool) -> dict[str, Any]: ...

    @abstractmethod
    def whole_choice(self, index: int, end: ChoiceEnd, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]: ...

    @abstractmethod
    def add_prompt_ids(self, body: dict[str, Any], choice: dict[str, Any], ids: Sequence[int]) -> None:
        """Where vLLM shows the prompt's token ids, beside the answer's."""

    # ---- shared ----

    def shown_token(self, token_id: int) -> str:
        """A token of the logprobs."""
        return f"token_id:{token_id}" if self._asked.tokens_as_ids else self._tokenizer.token_text(token_id)

    @property
    def with_logprobs(self) -> bool:
        return self._asked.draft.sampling.logprobs is not None

    def _count(self, update: ChoiceUpdate) -> None:
        self._num_tokens[update.index] += len(update.token_ids)
        self._cached_tokens[update.index] = update.cached_tokens or self._cached_tokens[update.index]

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    def _usage(self) -> dict[str, Any]:
        prompt_tokens, completion_tokens, total_tokens, cached_tokens = self._counts()
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": total_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }

    def _counts(self) -> tuple[int, int, int, int]:
        """Each prompt counts once, however many choices continue it."""
        completion_tokens = sum(self._num_tokens)
        cached_tokens = sum([self._cached_tokens[n] for n in self._prompts])
        return self._prompt_tokens, completion_tokens, self._prompt_tokens + completion_tokens, cached_tokens

    def _add_timing(self, body: dict[str, Any], ends: Sequence[ChoiceEnd]) -> None:
        """With several choices the first one's stand on top, and every one's in a list."""
        if not self._asked.return_timing:
            return
        each = [_timing_of(end) for end in ends]
        body["pdserve"] = each[0] if len(each) == 1 else each[0] | {"choices": each}


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _timing_of(end: ChoiceEnd) -> dict[str, Any]:
    return {"timing": dataclasses.asdict(end.timing), "slo": shown_verdict(end.verdict)}


def shown_verdict(verdict: Verdict) -> dict[str, Any]:
    return {"met_ttft": verdict.met_ttft, "met_tpot": verdict.met_tpot, "blame": verdict.blame.value}
