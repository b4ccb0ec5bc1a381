"""What the router submits: checked, announced to the handoff, given to the engine once its constraint is compiled."""

from __future__ import annotations

import asyncio
from functools import partial

from engine.core import Submit
from engine.thread import EngineThread
from pdserve.clock import Clock
from pdserve.errors import IncompatiblePeer, ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb
from pdserve.wire import key_from_proto, sampling_from_proto
from scheduling.sequence import Sequence, SequenceMode
from worker.constraints import ConstraintDesk
from worker.outbox import Outbox
from worker.policy import RolePolicy
from worker.telemetry import Telemetry
from worker.tracked import Tracked, TrackedSequences

_MODES = {
    pb.SEQUENCE_MODE_PREFILL: SequenceMode.PREFILL,
    pb.SEQUENCE_MODE_DECODE: SequenceMode.DECODE,
    pb.SEQUENCE_MODE_FULL: SequenceMode.FULL,
}


class Intake:
    """Belongs to the event loop."""

    def __init__(
        self,
        policy: RolePolicy,
        sequences: TrackedSequences,
        thread: EngineThread,
        constraints: ConstraintDesk,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._sequences = sequences
        self._thread = thread
        self._constraints = constraints
        self._telemetry = telemetry
        self._clock = clock
        self._compiling: set[asyncio.Task[None]] = set()

    def submit(self, submit: pb.SubmitSequence, outbox: Outbox) -> None:
        """Take a sequence, or tell the router why not; one that is here already is counted and left alone."""
        key = key_from_proto(submit.key)
        if key in self._sequences.by_key:
            self._telemetry.add("stale_messages_total", kind="submit")
            return
        mode = _MODES.get(submit.mode)
        if mode is None or mode not in self._policy.admits:
            error = IncompatiblePeer(f"a {self._policy.role} worker does not take mode {submit.mode}")
            outbox.tell_failed(key, error)
            return
        now, sampling = self._clock.now(), sampling_from_proto(submit.sampling)
        make = partial(
            Sequence, key=key, mode=mode, prompt_token_ids=submit.prompt_token_ids,
            output_token_ids=submit.output_token_ids, sampling=sampling, salt=submit.tenant, priority=submit.priority,
            arrival_s=now, deadline_s=now + submit.deadline_left_s,
        )  # fmt: skip
        tracked = self._sequences.begin(key, mode, submit, outbox)
        if sampling.constraint is None:
            self._thread.put(Submit(make()))
        else:
            compiling = asyncio.create_task(self._submit_constrained(key, tracked, sampling, make))
            self._compiling.add(compiling)
            compiling.add_done_callback(self._compiling.discard)

    async def _submit_constrained(
        self, key: SequenceKey, tracked: Tracked, sampling: SamplingParams, make: partial[Sequence]
    ) -> None:
        """The handoff goes ahead meanwhile; a sequence that ended meanwhile never reaches the engine."""
        try:
            sequence = make(matcher=await self._constraints.matcher(sampling))
            if self._sequences.by_key.get(key) is tracked and not tracked.told_end:
                self._thread.put(Submit(sequence))
        except ServingError as error:
            if self._sequences.by_key.get(key) is tracked:
                self._sequences.fail(key, error)

    async def close(self) -> None:
        """Compile no more."""
        self._constraints.close()
        for task in self._compiling:
            task.cancel()
        await asyncio.gather(*self._compiling, return_exceptions=True)
