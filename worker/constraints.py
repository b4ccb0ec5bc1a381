"""Constraints become matchers beside the engine, before their sequences reach it: no step waits for a compilation."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from engine.grammar.threads import start_thread
from pdserve.errors import CapacityError, InvariantViolation, ServingError, Unimplemented
from pdserve.sampling import Constraint, SamplingParams
from scheduling.step import TokenMatcher

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # the router's trial lets nothing through that takes a second

_Call = tuple[Callable[[], TokenMatcher], "Future[TokenMatcher]"]


class Compiler(Protocol):
    """What engine.grammar.GrammarCompiler does; an engine that takes no constraints loads no library for them."""

    def matcher(self, constraint: Constraint, eos_token_ids: tuple[int, ...]) -> TokenMatcher:
        """At the start of the constraint, for one sequence. Raises RequestError; may take a second."""
        ...


class ConstraintDesk:
    """Owned by the event loop; its one thread starts with the first constraint."""

    def __init__(self, compiler: Compiler | None) -> None:
        """`compiler`: None for an engine that takes no constraints."""
        self._compiler = compiler
        self._calls: queue.SimpleQueue[_Call | None] | None = None  # no longer than the sequences of this worker

    async def matcher(self, sampling: SamplingParams) -> TokenMatcher:
        """Of `sampling.constraint`. Raises RequestError, CapacityError when it takes too long."""
        constraint, compiler = sampling.constraint, self._compiler
        assert constraint is not None
        if compiler is None:
            raise Unimplemented("this server's engine takes no constraints (response_format, structured_outputs)")
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            start_thread("grammars", _answer, self._calls)
        answer: Future[TokenMatcher] = Future()
        self._calls.put((lambda: compiler.matcher(constraint, sampling.eos_token_ids), answer))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            raise CapacityError(f"the constraint was not compiled within {TIMEOUT_S:g} s") from None

    def close(self) -> None:
        if self._calls is not None:
            self._calls.put(None)


def _answer(calls: queue.SimpleQueue[_Call | None]) -> None:
    """The thread: until None comes."""
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
