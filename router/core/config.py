"""What the router's core can be told, in seconds and counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdserve.slo import Slo
from scheduling.lease import RENEW_S
from scheduling.routing import RoutingConfig


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """One session to one worker."""

    connect_timeout_s: float = 5.0  # until the worker's hello
    keepalive_time_s: float = 10.0  # RELIABILITY R4: pings after this much silence on the connection
    keepalive_timeout_s: float = 3.0  # and no answer for this long ends it
    max_message_bytes: int = 16 * 2**20
    max_outgoing: int = 4096  # messages waiting to be written; a worker that lets them pile up is lost
    reconnect_min_s: float = 0.05
    reconnect_max_s: float = 0.5


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """The core as a whole."""

    max_in_flight: int = 1024  # requests running at once; one more is QueueFull
    max_ahead_tokens: int = 1024  # of one request, arrived before the one that must come first
    gap_timeout_s: float = 2.0  # a gap in the tokens must close within this
    peer_grace_s: float = 1.0  # after a prefill worker died behind token 1: may the KV have been committed?
    freed_grace_s: float = 2.0  # a prefill worker says FREED within this after the end, or is told to abort
    silence_s: float = 3.5  # a worker that says nothing for this long is lost; status comes every second
    renew_s: float = RENEW_S  # leases
    stall_tokens: int = 1024  # a client with so many tokens unread ...
    stall_timeout_s: float = 30.0  # ... for this long is cut off
    tick_s: float = 0.25  # housekeeping
    stats_s: float = 10.0  # the line in the log
    slos: tuple[Slo, ...] = (Slo(),)  # the configured classes: labels and bucket edges; others count as default
    tenants: frozenset[str] = frozenset({"default"})
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
