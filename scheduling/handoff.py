"""Both sides of a handoff as pure state machines: an event goes in, effects come out, the shell carries them out.

    P (source):  HOLDING ── reserved ──> SENDING ── last block announced ──> SENT ── commit read ──> FREED
    D (target):  WAITING ── room ──> RESERVED ── first block ──> RECEIVING ── all verified ──> COMMITTED
    both:        ABORTED from every state but the last

Two rules make it safe. A block that was credited is always sent, whatever happens meanwhile, unless its pair is
destroyed: so a posted receive always ends. And blocks are given back only when nothing can touch them any more: the
source waits for its own sends and for the target's word, the target for its own receives; a destroyed pair is proof of
both (RELIABILITY section 4.3; DESIGN section 5).
"""

from scheduling.handoff_effects import (
    CommitSequence,
    Effect,
    FreeBlocks,
    Receive,
    Send,
    StopSequence,
    TellAbort,
    TellAbortAck,
    TellCommit,
    TellComplete,
    TellOffer,
    TellReady,
    TellReserved,
)
from scheduling.handoff_source import SOURCE_NEXT, SourceState, SourceTransfer
from scheduling.handoff_target import TARGET_NEXT, TargetState, TargetTransfer

__all__ = [
    "SOURCE_NEXT",
    "TARGET_NEXT",
    "CommitSequence",
    "Effect",
    "FreeBlocks",
    "Receive",
    "Send",
    "SourceState",
    "SourceTransfer",
    "StopSequence",
    "TargetState",
    "TargetTransfer",
    "TellAbort",
    "TellAbortAck",
    "TellCommit",
    "TellComplete",
    "TellOffer",
    "TellReady",
    "TellReserved",
]
