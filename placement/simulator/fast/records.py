"""The state of a compiled simulation: records in arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

Records = Any
"""A record, or an array of records or numbers: numba knows which."""

# Sequence states, as scheduling.sequence.SequenceState.
NONE, WAITING, RUNNING, RESERVED, HELD, QUARANTINED, DRAINING, FINISHED = range(8)
# Modes, as scheduling.sequence.SequenceMode.
PREFILL, DECODE, FULL = range(3)
# Handoff sides, as scheduling.handoff_source and _target.
S_HOLDING, S_SENDING, S_SENT, S_FREED, S_ABORTED = range(5)
T_WAITING, T_RESERVED, T_RECEIVING, T_COMMITTED, T_ABORTED = range(5)
# Commands of an engine.
ADD, COMMIT, QUARANTINE, ABORT = range(4)
# Events.
(
    ARRIVE, SUBMIT, STATUS_DUE, STATUS, SUBMIT_TO, BEGIN, TURN, COMPLETE, OFFER, READY, LAST_WORD, RESERVE, COMMIT_TOLD,
    ABORT_TO_SOURCE, ABORT_TO_TARGET, ABORT_ACK, SETTLE, COMMITTED, FREED,
    FIRST_TOKEN, END, LINK_START, LINK_END, ABORT_AT,
) = range(24)  # fmt: skip

# Delays with a lane of events each: a message's way, between two steps, an idle engine's, the router's, a link's.
MESSAGE, STEP, WAKE, FRONT, LATENCY = range(5)
NUM_LANES = 5

NEVER = -1.0  # no instant yet
NUM_PARAMS = 120  # of a worker's step times; measured curves need the most

request = np.dtype(
    [
        ("arrival_s", "f8"), ("prompt", "i8"), ("output", "i8"), ("prefill", "i8"), ("decode", "i8"), ("first_s", "f8"),
        ("last_s", "f8"), ("tokens", "i8"), ("prefill_s", "f8"),
        ("committed_s", "f8"), ("wait_s", "f8"), ("gap_s", "f8"),
        ("outcome", "i8"), ("running", "i8"), ("missed", "i8"),
    ]
)  # fmt: skip
"""One request; `prefill` and `decode` are workers, -1 for none."""

sequence = np.dtype(
    [
        ("state", "i8"), ("mode", "i8"), ("worker", "i8"), ("arrival_s", "f8"), ("order", "i8"), ("tokens", "i8"),
        ("given", "i8"), ("most", "i8"), ("computed", "i8"), ("blocks", "i8"), ("ready", "i8"), ("in_step", "i8"),
        ("first_step_s", "f8"), ("committed_s", "f8"), ("prev", "i8"), ("next", "i8"), ("chunk", "i8"),
        ("place", "i8"),  # among those running
        ("base", "i8"), ("since", "i8"),  # while steady: tokens less steps of its worker; the step it is settled until
        # the router's account of it
        ("held", "i8"), ("sent_s", "f8"), ("uncomputed", "i8"), ("room", "i8"), ("settled_s", "f8"), ("news", "i8"),
        ("news_prev", "i8"), ("news_next", "i8"),
        # what the step in flight tells of it
        ("told_first", "i8"), ("told_ready", "i8"), ("told_end", "i8"), ("told_holds", "i8"), ("told_queue_s", "f8"),
        ("told_first_s", "f8"),
    ]
)  # fmt: skip
"""Request i has sequence 2i on its prefill worker and 2i + 1 on its decode worker."""

worker = np.dtype(
    [
        ("role", "i8"), ("num_blocks", "i8"), ("free", "i8"), ("size", "i8"), ("budget", "i8"), ("seats", "i8"),
        ("mixed", "i8"), ("watermark", "i8"), ("max_len", "i8"),
        ("max_queue", "i8"), ("kind", "i8"), ("params", "f8", (NUM_PARAMS,)),
        ("stepping", "i8"), ("woken", "i8"), ("orders", "i8"), ("growing", "i8"),
        # lists: waiting, running, reserved
        ("head", "i8", (3,)), ("tail", "i8", (3,)), ("count", "i8", (3,)),
        ("command_head", "i8"), ("command_tail", "i8"),
        ("batch", "i8"), ("decodes", "i8"), ("places", "i8"),
        # those that are steady, and the instant at which the last step is heard of
        ("steady", "i8"), ("steady_base", "i8"), ("next_end", "i8"), ("num_gaps", "i8"), ("heard_s", "f8"),
        # counts
        ("steps", "i8"), ("busy_s", "f8"), ("prefill_tokens", "i8"), ("decode_tokens", "i8"), ("peak", "i8"),
        # estimator
        ("matrix", "f8", (4, 4)), ("right", "f8", (4,)), ("observed", "i8"), ("prior", "f8", (4,)),
        # ledger
        ("has_status", "i8"), ("reported_free", "i8"), ("reported_promised", "i8"), ("reported_uncomputed", "i8"),
        ("coefficients", "f8", (4,)), ("known_s", "f8"), ("ledger_tokens", "i8"), ("ledger_blocks", "i8"),
        ("num_held", "i8"), ("news_head", "i8"),
        ("column", "i8"), ("news_room", "i8"), ("news_tokens", "i8"),  # of all news; of those sent since `known_s`
        # the status on its way
        ("sent_free", "i8"), ("sent_promised", "i8"), ("sent_uncomputed", "i8"), ("sent_coefficients", "f8", (4,)),
        # links
        ("out_sharing", "i8"), ("in_sharing", "i8"),
    ]
)  # fmt: skip

handoff = np.dtype(
    [
        ("live", "i8"), ("blocks", "i8"), ("source", "i8"), ("ready", "i8"), ("announced", "i8"), ("token", "i8"),
        ("quiet", "i8"), ("source_done", "i8"), ("source_freed", "i8"),
        ("target", "i8"), ("offered", "i8"), ("known", "i8"),
        ("received", "i8"), ("in_flight", "i8"), ("target_token", "i8"),
        ("target_done", "i8"), ("target_freed", "i8"),
    ]
)  # fmt: skip
"""One per request."""

link = np.dtype([("head", "i8"), ("tail", "i8"), ("rate", "f8")])
"""One per pair of workers; a queue of transfers."""

event = np.dtype([("time_s", "f8"), ("given", "i8"), ("kind", "i8"), ("a", "i8"), ("b", "i8")])
"""What kind, and of whom."""

command = np.dtype([("kind", "i8"), ("s", "i8"), ("next", "i8")])
"""To an engine, about a sequence; `next` to the same engine."""

flow = np.dtype([("request", "i8"), ("blocks", "i8"), ("next", "i8"), ("left", "f8")])
"""A transfer, bytes left; `next` on the same link."""

world = np.dtype(
    [
        ("now_s", "f8"), ("given", "i8"), ("num_events", "i8"), ("next", "i8"), ("running", "i8"), ("handoffs", "i8"),
        ("turn", "i8"), ("round", "i8"),
        ("heap_size", "i8"), ("head", "i8", (NUM_LANES,)), ("tail", "i8", (NUM_LANES,)),  # of the event queue
        ("num_commands", "i8"), ("free_command", "i8"), ("num_flows", "i8"), ("free_flow", "i8"),
        ("crowded", "i8"),  # 1: an array is half full
        ("known_s", "f8"), ("moved_bytes", "f8"), ("failed", "i8"),
        ("num_active", "i8"),
        # when to give up
        ("ttft_s", "f8"), ("tpot_s", "f8"), ("first", "i8"), ("misses", "i8"), ("missed", "i8"),
        # the cluster
        ("delays", "f8", (NUM_LANES,)), ("status_s", "f8"), ("bytes_per_s", "f8"), ("block_bytes", "f8"),
        ("max_in_flight", "i8"), ("growth", "i8"), ("local", "i8"), ("round_robin", "i8"),
        ("used", "i8", (4,)), ("rows", "f8", (4, 5)), ("fitted", "f8", (4,)),  # where a status is computed
        ("num_known", "i8", (2,)),  # workers of each role whose latency is known

    ]
)  # fmt: skip
"""One record."""
