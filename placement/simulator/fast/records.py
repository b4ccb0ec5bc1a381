"""The state of a compiled simulation: records in arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

Records = Any
"""A record, or an array of records or numbers: numba knows which."""

wide: Any = np.int64
"""Of a record's narrow number, where a function would be compiled for both."""


def numbers(num: int) -> Any:
    """From 0 on, numpy's: numba compiles a function for each of Python's numbers that it is called with."""
    return np.arange(num)


# Sequence states, as scheduling.sequence.SequenceState.
NONE, WAITING, RUNNING, RESERVED, HELD, QUARANTINED, DRAINING, FINISHED = numbers(8)
# Modes, as scheduling.sequence.SequenceMode.
PREFILL, DECODE, FULL = numbers(3)
# Handoff sides, as scheduling.handoff_source and _target.
S_HOLDING, S_SENDING, S_SENT, S_FREED, S_ABORTED = numbers(5)
T_WAITING, T_RESERVED, T_RECEIVING, T_COMMITTED, T_ABORTED = numbers(5)
# Commands of an engine.
ADD, COMMIT, QUARANTINE, ABORT = numbers(4)
# Events.
(
    ARRIVE, SUBMIT, STATUS_DUE, STATUS, SUBMIT_BOTH, SUBMIT_TO, TURN, COMPLETE, OFFER, READY, LAST_WORD, RESERVE,
    ABORT_TO_SOURCE, ABORT_TO_TARGET, ABORT_ACK, SETTLE, COMMITTED, FREED,
    FIRST_TOKEN, END, LINK_START, LINK_END, ABORT_AT,
    TURN_AT,  # a turn that had to be put between events given before it
) = numbers(24)  # fmt: skip

# Delays with a lane of events each: a message's way, between two steps, an idle engine's, the router's, a link's.
MESSAGE, STEP, WAKE, FRONT, LATENCY = numbers(5)
NUM_LANES = 5
HEAP, DUES = NUM_LANES, NUM_LANES + 1  # where events are that are in no lane

NEVER = -1.0  # no instant yet
NUM_PARAMS = 120  # of a worker's step times; measured curves need the most

# Of what is one per request there are millions: narrow fields, those of 8 bytes first so that all lie aligned.
request = np.dtype(
    [
        ("arrival_s", "f8"), ("first_s", "f8"), ("last_s", "f8"), ("prefill_s", "f8"), ("committed_s", "f8"),
        ("wait_s", "f8"), ("gap_s", "f8"),
        ("prompt", "i4"), ("output", "i4"), ("prefill", "i4"), ("decode", "i4"), ("tokens", "i4"),
        ("outcome", "i1"), ("running", "i1"), ("missed", "i1"), ("unused", "i1"),
    ]
)  # fmt: skip
"""One request; `prefill` and `decode` are workers, -1 for none."""

sequence = np.dtype(
    [
        ("arrival_s", "f8"), ("first_step_s", "f8"), ("committed_s", "f8"),
        ("tokens", "i4"), ("given", "i4"), ("most", "i4"), ("computed", "i4"), ("blocks", "i4"), ("ready", "i4"),
        ("chunk", "i4"), ("worker", "i4"), ("order", "i4"), ("prev", "i4"), ("next", "i4"),
        ("place", "i4"),  # among those running
        ("base", "i4"), ("since", "i4"),  # while steady: tokens less steps of its worker; the step it is settled until
        ("state", "i1"), ("mode", "i1"), ("in_step", "i1"),
        # what the step in flight tells of it
        ("told_first", "i1"), ("told_end", "i1"), ("told_holds", "i1"),
        # the router's account of it
        ("held", "i1"), ("news", "i1"),
        ("sent_s", "f8"), ("settled_s", "f8"), ("told_queue_s", "f8"), ("told_first_s", "f8"),
        ("uncomputed", "i4"), ("room", "i4"), ("news_prev", "i4"), ("news_next", "i4"),
        ("told_ready", "i4"),
        # `cache`: leading blocks that have a name; those found at the latest admission; copies of such as were there
        ("published", "i4"), ("cached", "i4"), ("copies", "i4"), ("cached_tokens", "i4"),  # at its first admission
        ("expected", "i4"),  # cached tokens, by the router
    ]
)  # fmt: skip
"""Request i has sequence 2i on its prefill worker and 2i + 1 on its decode worker."""

# Of a worker, what one step touches lies together: with 1,000 of them a step finds its own in no near cache.
worker = np.dtype(
    [
        ("free", "i4"), ("size", "i4"), ("budget", "i4"), ("seats", "i4"), ("mixed", "i4"), ("watermark", "i4"),
        ("num_blocks", "i4"), ("params", "i4"),  # a row of the step times
        ("stepping", "i4"), ("woken", "i4"), ("growing", "i4"),
        # lists: waiting, running, reserved
        ("head", "i4", (3,)), ("tail", "i4", (3,)), ("count", "i4", (3,)),
        ("command_head", "i4"), ("command_tail", "i4"),
        ("batch", "i4"), ("decodes", "i4"), ("places", "i4"), ("peak", "i4"),
        # those that are steady, and the instant at which the last step is heard of
        ("steady", "i4"), ("next_end", "i4"), ("num_gaps", "i4"), ("steps", "i4"),
        ("ahead", "i4"), ("at", "i4"),  # steps known ahead, 0: none; which of them is under way, or ended last
        ("touched", "i4"),  # 0: it is not; else the next one such, + 2
        ("observes", "i4"),  # whether anybody reads what its estimator learns
        ("steady_base", "i8"), ("steady_room", "i8"),  # and blocks they have still to take
        ("heard_s", "f8"), ("busy_s", "f8"), ("prefill_tokens", "i8"), ("decode_tokens", "i8"),
        # ledger
        ("role", "i4"), ("has_status", "i4"), ("num_held", "i4"), ("news_head", "i4"), ("column", "i4"),
        ("orders", "i4"), ("max_len", "i4"), ("max_queue", "i4"),
        ("known_s", "f8"), ("reported_free", "i8"), ("reported_promised", "i8"), ("reported_uncomputed", "i8"),
        ("ledger_tokens", "i8"), ("ledger_blocks", "i8"),
        ("news_room", "i8"), ("news_tokens", "i8"),  # of all news; of those sent since `known_s`
        # estimator
        ("matrix", "f8", (4, 4)), ("right", "f8", (4,)), ("observed", "i8"), ("prior", "f8", (4,)),
        ("coefficients", "f8", (4,)),  # as the router knows them
        # the status on its way
        ("sent_free", "i8"), ("sent_promised", "i8"), ("sent_uncomputed", "i8"), ("sent_coefficients", "f8", (4,)),
        # links
        ("out_sharing", "i4"), ("in_sharing", "i4"), ("links", "i4"),  # from it: the first, -1 for none
        # prefix cache; of a workload's prefix ids, 0: it keeps none
        ("prefix_tokens", "i4"), ("caches", "i4"), ("preempted", "i4"),
        ("index", "i4"), ("idle", "i4"), ("named", "i4"),  # publications and matches so far
        ("stamp", "i4"), ("run_head", "i4"), ("run_tail", "i4"), ("free_run", "i4"), ("num_runs", "i4"),
        ("free_leaf", "i4"), ("num_leaves", "i4"),
        # whom it refused last, and in what circumstances
        ("refused", "i4"), ("refused_free", "i4"), ("refused_named", "i4"), ("refused_spare", "i4"),
    ]
)  # fmt: skip

handoff = np.dtype(
    [
        ("blocks", "i4"), ("ready", "i4"), ("announced", "i4"), ("known", "i4"), ("received", "i4"),
        ("in_flight", "i4"), ("skip", "i4"),
        ("live", "i1"), ("source", "i1"), ("token", "i1"), ("quiet", "i1"), ("source_done", "i1"),
        ("source_freed", "i1"), ("target", "i1"), ("offered", "i1"), ("target_token", "i1"), ("target_done", "i1"),
        ("target_freed", "i1"), ("unused", "i1"),
    ]
)  # fmt: skip
"""One per request."""

link = np.dtype([("source", "i4"), ("target", "i4"), ("head", "i4"), ("tail", "i4"), ("next", "i8")])
"""From one worker to another, while anything is to be moved: a queue of transfers; `next` from the same worker."""

active = np.dtype(
    [("left", "f8"), ("rate", "f8"), ("source", "i4"), ("target", "i4"), ("link", "i4"), ("unused", "i4")]
)
"""A link whose first transfer is under way: bytes left."""

event = np.dtype([("time_s", "f8"), ("given", "i8"), ("kind", "i4"), ("a", "i4"), ("b", "i8")])
"""What kind, and of whom."""

due = np.dtype([("given", "i8"), ("sure", "i8")])
"""The end of a worker's step."""

command = np.dtype([("kind", "i8"), ("s", "i8"), ("next", "i8")])
"""To an engine, about a sequence; `next` to the same engine."""

flow = np.dtype([("request", "i4"), ("blocks", "i4"), ("next", "i8"), ("left", "f8")])
"""A transfer, bytes in all; `next` on the same link."""

world = np.dtype(
    [
        ("now_s", "f8"), ("given", "i8"), ("num_events", "i8"), ("next", "i8"), ("running", "i8"), ("handoffs", "i8"),
        ("turn", "i8"), ("round", "i8"),
        ("heap_size", "i8"), ("head", "i8", (NUM_LANES,)), ("tail", "i8", (NUM_LANES,)),  # of the event queue
        ("mask", "i8", (NUM_LANES,)),
        ("soonest_s", "f8", (DUES + 1,)),  # of each lane, of the heap, of the steps' ends
        ("num_commands", "i8"), ("free_command", "i8"), ("num_flows", "i8"), ("free_flow", "i8"),
        ("num_links", "i8"), ("free_link", "i8"),
        ("crowded", "i8"),  # 1: an array is half full
        ("forgot", "i8"),  # 1: without `cache`, and a sequence was preempted that would find its own blocks again
        ("ahead", "i8"), ("unclear", "i8"),  # steps are taken ahead; 1: and something came at the very instant of one
        ("known_s", "f8"), ("moved_bytes", "f8"), ("failed", "i8"),
        ("num_active", "i8"),
        # when to give up
        ("ttft_s", "f8"), ("tpot_s", "f8"), ("first", "i8"), ("misses", "i8"), ("missed", "i8"),
        # the cluster
        ("delays", "f8", (NUM_LANES,)), ("status_s", "f8"), ("bytes_per_s", "f8"), ("block_bytes", "f8"),
        ("max_in_flight", "i8"), ("growth", "i8"), ("local", "i8"), ("round_robin", "i8"),
        ("used", "i8", (4,)), ("rows", "f8", (4, 5)), ("fitted", "f8", (4,)),  # where a status is computed
        ("num_known", "i8", (2,)),  # workers of each role whose latency is known
        ("chunk", "i8", (2,)),  # of all workers of a role; 0: they differ
        ("bounds", "i8", (2,)),  # 1: they tell of many workers of a role who is chosen (`soonest`)
        ("touched", "i8"),  # workers with steps known ahead to whom this event gave a command: the first, -1 for none
    ]
)  # fmt: skip
"""One record."""
