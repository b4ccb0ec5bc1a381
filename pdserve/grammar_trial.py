"""Tries constraints in a process of its own: `python -m pdserve.grammar_trial`, one line of JSON in, one out.

A grammar may take seconds, gigabytes or the stack: whatever it does, it does here. The process allows itself little of
each, and the kernel ends it: its end is an answer too. What passes is compiled again by the workers.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator

from llguidance import LLMatcher, LLTokenizer

from pdserve.errors import BadSampling
from pdserve.grammar import grammar_of, parser_limits, patterns_of
from pdserve.sampling import Constraint, ConstraintKind

MAX_CPU_S = 0.25  # for one constraint; then SIGPROF
MAX_WALL_S = 0.7  # the same on a busy machine; then SIGALRM
MAX_STEP_S = 0.05  # of CPU, for one mask
MAX_MEMORY_BYTES = 2 << 30
STACK_BYTES = 2 << 20  # a quarter of what the workers' threads have
WALKS, WALK_BYTES = 4, 64


def problem_of(constraint: Constraint) -> str:
    """Why no worker should see it, as the end of a sentence that begins with its field; "" when nothing is wrong."""
    try:
        grammars = [grammar_of(constraint)]
        grammars += [LLMatcher.grammar_from_regex(pattern) for pattern in patterns_of(constraint)]
    except BadSampling as error:
        return error.message
    whole, *patterns = grammars
    problems = (_problem(LLMatcher(_BYTES, whole, log_level=0, limits=parser_limits())), *map(_costly, patterns))
    return next(filter(None, problems), "")


def _costly(grammar: str) -> str:
    """A pattern that does not stand alone was judged with the whole: only its cost counts."""
    matcher = LLMatcher(_BYTES, grammar, log_level=0, limits=parser_limits())
    return "" if matcher.is_error() else _problem(matcher)


def _problem(start: LLMatcher) -> str:
    """Walks from the start, seeded: each byte one of those that are allowed."""
    if start.is_error():
        return _in_words(start.get_error())
    for walk in range(WALKS):
        matcher, rng = start.deep_copy(), random.Random(walk)
        for _ in range(WALK_BYTES):
            began_s = time.process_time()
            mask = matcher.compute_logit_bias()
            if time.process_time() - began_s > MAX_STEP_S:
                return f"takes more than {MAX_STEP_S * 1e3:.0f} ms for one token"
            if matcher.is_error():
                return _in_words(matcher.get_error())
            allowed = [token for token, weight in enumerate(mask) if weight and token not in _ENDS]
            if not allowed:
                break
            matcher.consume_token(rng.choice(allowed))
    return ""


def _in_words(error: str) -> str:
    """One line of what llguidance says."""
    if "NoExtension" in error:
        return "leads to a place where no text is possible"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    line = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "unknown error")
    return f"cannot be used: {line[:200]}"


_BYTES = LLTokenizer("byte")
_ENDS = frozenset(_BYTES.eos_tokens)


def _answers() -> Iterator[str]:
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
        signal.setitimer(signal.ITIMER_REAL, MAX_WALL_S)
        asked = json.loads(line)
        answer = problem_of(Constraint(ConstraintKind(asked["kind"]), asked["text"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        yield json.dumps({"problem": answer})


def _serve() -> None:
    for answer in _answers():
        print(answer, flush=True)


def main() -> None:
    """Until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the server
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
