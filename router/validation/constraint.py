"""Whether a constraint may reach a worker: tried before, in a process of its own (pdserve/grammar_trial.py)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from pdserve.errors import BadSampling, CapacityError, InvariantViolation, QueueFull
from pdserve.sampling import MAX_CONSTRAINT_BYTES, Constraint
from router.interface import ModelCard
from router.validation.draft import SamplingDraft
from router.validation.prompt import check_unicode

MAX_TRIALS = 2  # at once
MAX_WAITING = 64  # constraints that wait for one
MAX_VERDICTS = 1024  # kept
ANSWER_LIMIT_S = 10.0  # for a trier to start and answer: it ends itself long before, unless the machine stands still

_COSTS_TOO_MUCH = {
    -signal.SIGPROF: "takes too long to compile",
    -signal.SIGALRM: "takes too long to compile",  # or the machine has no time: not kept
    -signal.SIGSEGV: "is nested too deep, through its references or rules",
    -signal.SIGABRT: "takes too much memory to compile",
}


def check_constraint(asked: SamplingDraft, card: ModelCard) -> Constraint | None:
    """What can be said at once. Raises BadSampling for what a constraint cannot go with, or text that is no Unicode."""
    if asked.constraint is None:
        return None
    field = asked.constraint_field
    check_unicode(field, asked.constraint.text)
    size = len(asked.constraint.text.encode())
    if size > MAX_CONSTRAINT_BYTES:
        raise BadSampling(f"{field} is {size:,} bytes long, limit {MAX_CONSTRAINT_BYTES:,}", field=field)
    if not card.eos_token_ids:
        raise BadSampling(f"{field} needs an end-of-sequence token; the model has none", field=field)
    if asked.ignore_eos:
        raise BadSampling(
            f"ignore_eos cannot go with {field}: where its text ends, the output ends", field="ignore_eos"
        )
    if asked.min_tokens:
        raise BadSampling(
            f"min_tokens cannot go with {field}: where its text ends, the output ends", field="min_tokens"
        )
    return asked.constraint


class ConstraintTrials:
    """Owned by one event loop. Its processes start with the first constraint; a hostile one ends its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_TRIALS, thread_name_prefix="constraint-trial")
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()  # digest of a constraint -> problem, "" for none
        self._num_waiting = 0
        self._lock = threading.Lock()  # of these two
        self._idle: list[subprocess.Popen[bytes]] = []
        self._all: set[subprocess.Popen[bytes]] = set()

    async def check(self, constraint: Constraint, field: str) -> None:
        """Usually within a second. Raises BadSampling with what is wrong; CapacityError when too many wait."""
        digest = hashlib.sha256(f"{constraint.kind.value} {constraint.text}".encode()).digest()
        problem = self._verdicts.get(digest, "")
        if digest not in self._verdicts:
            if self._num_waiting >= MAX_WAITING:
                raise QueueFull(f"{MAX_WAITING} constraints wait to be tried, which is the limit", retry_after_s=1.0)
            self._num_waiting += 1
            try:
                loop = asyncio.get_running_loop()
                problem, is_certain = await loop.run_in_executor(self._threads, self._try, constraint)
            finally:
                self._num_waiting -= 1
            if is_certain:
                self._verdicts[digest] = problem
            if len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        if problem:
            raise BadSampling(f"{field} {problem}", field=field)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for trier in self._all:
                trier.kill()
            for trier in self._idle:
                _reap(trier)

    # ---- on a thread ----

    def _try(self, constraint: Constraint) -> tuple[str, bool]:
        """The trier's answer, or what its end says; and whether it would be the same another time."""
        trier = self._take()
        answer, is_late = _ask(trier, constraint)
        if answer and not is_late:
            with self._lock:
                self._idle.append(trier)
            return str(json.loads(answer)["problem"]), True
        with self._lock:
            self._all.discard(trier)
        code = _reap(trier)
        if is_late:
            raise CapacityError(f"the constraint was not tried within {ANSWER_LIMIT_S:g} s")
        if code not in _COSTS_TOO_MUCH:
            raise InvariantViolation(f"the trial of a constraint ended with {code}")
        return _COSTS_TOO_MUCH[code], code != -signal.SIGALRM

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._idle:
                trier = self._idle.pop()
                if trier.poll() is None:
                    return trier
                self._all.discard(trier)
                _reap(trier)
            command = [sys.executable, "-m", "pdserve.grammar_trial"]
            trier = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._all.add(trier)
            return trier


def _ask(trier: subprocess.Popen[bytes], constraint: Constraint) -> tuple[bytes, bool]:
    """Its line, empty when it ended instead; and whether it was killed for taking longer than anything may."""
    assert trier.stdin is not None and trier.stdout is not None
    late = threading.Event()

    def kill() -> None:
        late.set()
        trier.kill()

    timer = threading.Timer(ANSWER_LIMIT_S, kill)
    timer.start()
    try:
        trier.stdin.write(json.dumps({"kind": constraint.kind.value, "text": constraint.text}).encode() + b"\n")
        trier.stdin.flush()
        answer = trier.stdout.readline()
    except BrokenPipeError:
        answer = b""
    finally:
        timer.cancel()
    return answer, late.is_set()


def _reap(trier: subprocess.Popen[bytes]) -> int:
    """Its exit code; its pipes are closed. It has ended, or was just killed."""
    with trier:
        return trier.wait()
