"""The path that both front doors share: a draft becomes sequences, their tokens become text, one outcome ends it all.

draft ── validate, tokenize ──> RouterRequests ── submit ──> TokenStreams
                                                                 │ Choice: detokenize, stop strings
front <── take() ── Outbox <─────────────────────────────────────┘ in the front's own task
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from pdserve.clock import Clock
from pdserve.errors import Cancelled, DeadlineExceeded, QueueFull, RequestError, ServingError, Stopping
from router.choice import Choice, ChoiceUpdate
from router.doorbell import Doorbell
from router.interface import ModelCard, RouterCore, RouterRequest
from router.limits import FrontConfig
from router.outbox import Outbox
from router.prompts import PromptEncoder
from router.refusal import refused
from router.text import OutputText, Tokenizer
from router.validation import (
    ConstraintTrials,
    RequestDraft,
    check_model,
    check_priority,
    deadline_after,
    resolve_request_id,
    resolve_sampling,
    resolve_slo,
    resolve_tenant,
)

logger = logging.getLogger(__name__)

CORE_GRACE_S = 0.05
"""The core ends a request at its deadline and knows why it was late; only if it does not, the front does."""
RETRY_AFTER_FULL_S = 1.0


class Generation:
    """One request on its way: one sequence, or one per prompt and choice."""

    def __init__(self, request_id: str, requests: list[RouterRequest], outbox: Outbox) -> None:
        self.request_id = request_id
        self.requests = requests
        self._outbox = outbox

    def take(self) -> Awaitable[list[ChoiceUpdate]]:
        """What is new, at least one update. Raises the ServingError that ended the request."""
        return self._outbox.take()


class FrontDesk:
    """What both front doors stand on. Owned by one event loop."""

    def __init__(self, core: RouterCore, card: ModelCard, tokenizer: Tokenizer, config: FrontConfig, clock: Clock):
        self.core = core
        self.card = card
        self.tokenizer = tokenizer
        self.config = config
        self._clock = clock
        self.prompts = PromptEncoder(tokenizer, card, config.limits)
        self._constraints = ConstraintTrials()
        self._doorbell = Doorbell()
        self._num_running = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def why_not_ready(self) -> str:
        """Why a request could not be served now; "": it could."""
        return "the server is draining" if self._draining else self.core.why_not_ready()

    def drain(self) -> None:
        """Refuse new requests from now on; those running go on."""
        self._draining = True

    async def idle(self) -> None:
        """Returns when no request is running."""
        await self._idle.wait()

    def close(self) -> None:
        self.prompts.close()
        self._constraints.close()

    @asynccontextmanager
    async def serve(self, draft: RequestDraft) -> AsyncIterator[Generation]:
        """One request from validation to its end; whatever happens, leaving the block frees everything it holds.

        Raises a ServingError when the request is refused, fails, or runs past its deadline.
        """
        received_s = self._clock.now()
        limits = self.config.limits
        with self._counting_refusals(draft, received_s):
            self._check_room()
            deadline_s = deadline_after(received_s, draft.time_left_s, limits)
            request_id = resolve_request_id(draft.request_id, limits)
        with self._place():
            outbox, requests = Outbox(self._doorbell), list[RouterRequest]()
            try:
                async with asyncio.timeout(deadline_s - self._clock.now() + CORE_GRACE_S) as timer:
                    with self._counting_refusals(draft, received_s):
                        requests = await self._resolve(request_id, draft, received_s, deadline_s)
                    with (
                        _expiring_when_stuck(timer, outbox, limits.max_unread_s),
                        self._running(request_id, draft, requests, outbox) as generation,
                    ):
                        yield generation
            except TimeoutError:
                if self._clock.now() < deadline_s:
                    raise Cancelled(f"the client read nothing for {limits.max_unread_s:g} s") from None
                late = DeadlineExceeded(f"the deadline of {deadline_s - received_s:.3g} s passed")
                if not requests:  # the core never saw it
                    self.core.reject(refused(draft, received_s, self.config), late)
                raise late from None

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """A place among the running requests, and a deadline, for what the core never sees. Raises ServingError."""
        self._check_room()
        limit_s = self.config.limits.default_deadline_s
        with self._place():
            try:
                async with asyncio.timeout(limit_s):
                    yield
            except TimeoutError:
                raise DeadlineExceeded(f"the deadline of {limit_s:.3g} s passed") from None

    def _check_room(self) -> None:
        """Before anything costly is done."""
        limit = self.config.limits.max_concurrent_requests
        if self._draining:
            raise Stopping("the server is draining", retry_after_s=RETRY_AFTER_FULL_S)
        if self._num_running >= limit:
            raise QueueFull(f"{limit:,} requests are running, which is the limit", retry_after_s=RETRY_AFTER_FULL_S)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One more that runs; there was room."""
        self._num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    @contextmanager
    def _counting_refusals(self, draft: RequestDraft, received_s: float) -> Iterator[None]:
        """What is refused before the core sees it counts as rejected all the same."""
        try:
            yield
        except ServingError as error:
            self.core.reject(refused(draft, received_s, self.config), error)
            raise

    async def _resolve(
        self, request_id: str, draft: RequestDraft, received_s: float, deadline_s: float
    ) -> list[RouterRequest]:
        """The draft as requests to the core: prompts in order, the choices of each beside one another."""
        limits = self.config.limits
        check_model(draft.model, self.card, limits)
        check_priority(draft.priority, limits)
        slo = resolve_slo(draft.slo, self.config)
        tenant = resolve_tenant(draft.tenant, self.config)
        if not 1 <= draft.num_choices <= limits.max_choices:
            raise RequestError(f"n is {draft.num_choices:,}, allowed 1 to {limits.max_choices}", field="n")
        if not draft.prompts:
            raise RequestError(f"{draft.prompt_field} is missing: nothing to continue", field=draft.prompt_field)
        num_sequences = len(draft.prompts) * draft.num_choices
        if num_sequences > limits.max_prompts:
            raise RequestError(
                f"{draft.prompt_field} with n asks for {num_sequences:,} choices, limit {limits.max_prompts}",
                field=draft.prompt_field,
            )
        requests: list[RouterRequest] = []
        for position, prompt in enumerate(draft.prompts):
            field = draft.prompt_field if len(draft.prompts) == 1 else f"{draft.prompt_field}[{position}]"
            ids = await self.prompts.prompt(prompt, field, draft)
            sampling = resolve_sampling(draft, len(ids), self.card, limits)
            if sampling.constraint is not None:
                await self._constraints.check(sampling.constraint, draft.sampling.constraint_field)
            for choice in range(draft.num_choices):
                name = request_id if num_sequences == 1 else f"{request_id}-{len(requests)}"
                chosen = replace(sampling, choice_index=choice)
                requests.append(
                    RouterRequest(
                        name, ids, chosen, slo, draft.priority, tenant, received_s, deadline_s, draft.trace_parent
                    )
                )
        return requests

    @contextmanager
    def _running(
        self, request_id: str, draft: RequestDraft, requests: list[RouterRequest], outbox: Outbox
    ) -> Iterator[Generation]:
        """Submits every sequence; on the way out all are cancelled that have not ended."""
        choices: list[Choice] = []
        try:
            for index, request in enumerate(requests):
                output = OutputText(
                    self.tokenizer.detokenizer(skip_special_tokens=draft.output.skip_special_tokens),
                    draft.sampling.stop,
                    request.sampling.end_token_ids,
                    request.sampling.min_tokens,
                    include_stop=draft.output.include_stop,
                )
                choices.append(Choice(index, request, self.core.submit(request), output))
            outbox.follow(choices, looks_ahead=bool(draft.sampling.stop))
            yield Generation(request_id, requests, outbox)
        finally:
            for choice in choices:
                choice.stream.cancel()
            outbox.close()


@contextmanager
def _expiring_when_stuck(timer: asyncio.Timeout, outbox: Outbox, max_unread_s: float) -> Iterator[None]:
    """Inside the block the timer expires when the outbox's writer stays away for max_unread_s.

    One look per max_unread_s, not a timer per token.
    """
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle

    def look() -> None:
        nonlocal handle
        now_s = loop.time()
        away_since_s = now_s if outbox.away_since_s is None else outbox.away_since_s
        if now_s >= away_since_s + max_unread_s:
            timer.reschedule(now_s)
        else:
            handle = loop.call_at(away_since_s + max_unread_s, look)

    handle = loop.call_later(max_unread_s, look)
    try:
        yield
    finally:
        handle.cancel()
