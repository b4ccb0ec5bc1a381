"""What one step gives one router: plain tokens in columns, everything else sequence by sequence."""

from __future__ import annotations

from pdserve.v1 import worker_pb2 as pb
from pdserve.wire import output_to_proto
from scheduling.batching import SequenceUpdate


class StepMessage:
    """Gathers; `to_proto` once. A token costs three appends, a `SequenceOutput` microseconds at both ends."""

    __slots__ = ("_attempts", "_indexes", "_outputs", "_started", "_token_ids")

    def __init__(self) -> None:
        self._attempts: list[int] = []
        self._indexes: list[int] = []
        self._token_ids: list[int] = []
        self._outputs: list[pb.SequenceOutput] = []
        self._started: list[pb.PromptStarted] = []

    @property
    def is_empty(self) -> bool:
        return not self._attempts and not self._outputs and not self._started

    def add_plain(self, update: SequenceUpdate) -> None:
        """One that `is_plain`."""
        assert update.token is not None and update.output_index is not None
        self._attempts.append(update.key.attempt)
        self._indexes.append(update.output_index)
        self._token_ids.append(update.token.token_id)

    def add_started(self, update: SequenceUpdate) -> None:
        """A prompt's first step, when it has more."""
        assert update.started_after_s is not None
        self._started.append(pb.PromptStarted(attempt=update.key.attempt, queue_s=update.started_after_s))

    def add(self, update: SequenceUpdate) -> None:
        """A token with whatever else there is to say."""
        assert update.token is not None and update.output_index is not None
        timing = None
        if update.first_token_timing is not None:
            first = update.first_token_timing
            timing = pb.SequenceTiming(
                queue_s=first.queue_s, first_token_s=first.first_token_s, cached_tokens=first.cached_tokens
            )
        logprobs = () if update.token.logprobs is None else (update.token.logprobs,)
        output = output_to_proto(
            update.key, update.output_index, (update.token.token_id,),
            logprobs=logprobs, finish_reason=update.finish_reason, timing=timing,
        )  # fmt: skip
        self._outputs.append(output)

    def to_proto(self) -> pb.WorkerMessage:
        message = pb.WorkerMessage()
        step = message.step
        step.SetInParent()
        if self._outputs:
            step.outputs.extend(self._outputs)
        if self._started:
            step.started.extend(self._started)
        if self._attempts:
            plain = step.plain
            plain.attempts.extend(self._attempts)
            plain.indexes.extend(self._indexes)
            plain.token_ids.extend(self._token_ids)
        return message
