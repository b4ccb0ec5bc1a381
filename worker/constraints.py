"""Constraints become matchers beside the engine, before their sequences reach it: no step waits for a compilation."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from engine.grammar.threads import start_thread
from pdserve.errors import CapacityError, InvariantViolation, QueueFull, ServingError, Unimplemented
from pdserve.sampling import Constraint, SamplingParams
from scheduling.step import TokenMatcher

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # the router's trial lets nothing through that takes a second
NUM_THREADS = 2  # so that a slow one does not keep the others waiting
MAX_WAITING = 256  # for one of them

_Call = tuple[Callable[[], TokenMatcher], "Future[TokenMatcher]"]


class Compiler(Protocol):
    """What engine.grammar.GrammarCompiler does; an engine that takes no constraints loads no library for them."""

    def matcher(self, constraint: Constraint, eos_token_ids: tuple[int, ...]) -> TokenMatcher:
        """At the start of the constraint, for one sequence. Raises RequestError; may take a second.

        Called on several threads at once.
        """
        ...


class ConstraintDesk:
    """Owned by the event loop; its threads start with the first constraint."""

    def __init__(self, compiler: Compiler | None) -> None:
        """`compiler`: None for an engine that takes no constraints."""
        self._compiler = compiler
        self._calls: queue.SimpleQueue[_Call | None] | None = None
        self._num_asked = 0

    async def matcher(self, sampling: SamplingParams) -> TokenMatcher:
        """Of `sampling.constraint`. Raises RequestError; CapacityError when it takes too long or too many wait."""
        constraint, compiler = sampling.constraint, self._compiler
        assert constraint is not None
        if compiler is None:
            raise Unimplemented("this server's engine takes no constraints (response_format, structured_outputs)")
        if self._num_asked >= MAX_WAITING + NUM_THREADS:
            raise QueueFull(f"{MAX_WAITING} constraints wait to be compiled, which is the limit", retry_after_s=1.0)
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            for number in range(NUM_THREADS):
                start_thread(f"grammars-{number}", _answer, self._calls)
        answer: Future[TokenMatcher] = Future()
        self._calls.put((lambda: compiler.matcher(constraint, sampling.eos_token_ids), answer))
        self._num_asked += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            raise CapacityError(f"the constraint was not compiled within {TIMEOUT_S:g} s") from None
        finally:
            self._num_asked -= 1

    def close(self) -> None:
        if self._calls is not None:
            for _ in range(NUM_THREADS):
                self._calls.put(None)


def _answer(calls: queue.SimpleQueue[_Call | None]) -> None:
    """One thread: until None comes."""
    while (call := calls.get()) is not None:
        compile_it, answer = call
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(compile_it())
            except ServingError as error:
                answer.set_exception(error)
            except BaseException as caught:  # a panic of Rust is no Exception; without the thread all would time out
                log.exception("a constraint could not be compiled")
                answer.set_exception(InvariantViolation(f"compiling the constraint failed: {type(caught).__name__}"))
