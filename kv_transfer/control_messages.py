"""What a state machine tells its peer, as messages of the pair's control stream."""

from __future__ import annotations

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from pdserve.v1 import worker_pb2 as pb
from scheduling.handoff import (
    Effect,
    TellAbort,
    TellAbortAck,
    TellCommit,
    TellComplete,
    TellOffer,
    TellReady,
    TellReserved,
)  # fmt: skip


def message_to_target(key: SequenceKey, transfer_id: int, effect: Effect) -> pb.SourceMessage:
    """From the prefill worker."""
    match effect:
        case TellReady(first, block_ids, generations):
            ready = pb.BlocksReady(transfer_id=transfer_id, first=first, block_ids=block_ids, generations=generations)
            return pb.SourceMessage(ready=ready)
        case TellOffer(num_blocks):
            named = pb.SequenceKey(request_id=key.request_id, attempt=key.attempt)
            return pb.SourceMessage(offer=pb.Offer(key=named, transfer_id=transfer_id, num_blocks=num_blocks))
        case TellComplete(token_id):
            return pb.SourceMessage(complete=pb.PromptComplete(transfer_id=transfer_id, first_token_id=token_id))
        case TellAbort(reason):
            return pb.SourceMessage(abort=pb.TransferAbort(transfer_id=transfer_id, reason=reason))
        case _:
            raise InvariantViolation(f"not for the target: {effect}")


def message_to_source(transfer_id: int, effect: Effect) -> pb.TargetMessage:
    """From the decode worker."""
    match effect:
        case TellReserved(skip):
            return pb.TargetMessage(reserved=pb.Reserved(transfer_id=transfer_id, skip_blocks=skip))
        case TellCommit():
            return pb.TargetMessage(commit=pb.Commit(transfer_id=transfer_id))
        case TellAbort(reason):
            return pb.TargetMessage(abort=pb.TransferAbort(transfer_id=transfer_id, reason=reason))
        case TellAbortAck():
            return pb.TargetMessage(abort_ack=pb.TransferAbort(transfer_id=transfer_id))
        case _:
            raise InvariantViolation(f"not for the source: {effect}")
