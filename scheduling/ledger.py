"""What a router knows of one worker's load: its own account of what it sent there, and the worker's last status.

The account is exact but blind to what is done of a prompt; the status is up to a second old. A load view takes from
each what it knows better. The router and the simulator keep this same ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.ids import SequenceKey
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import Role, WorkerLoadView

ON_THE_WAY_S = 0.05  # sent this shortly before a status came: the status does not know of it yet

_NOTHING_KNOWN = LatencyModel(LatencyCoefficients())


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker is, as far as load matters."""

    worker_id: str
    role: Role
    num_blocks: int
    block_size: int
    chunk_tokens: int  # token budget of one step


@dataclass(frozen=True, slots=True)
class ReportedLoad:
    """A worker's own account of itself."""

    free_blocks: int  # evictable cached ones included
    promised_blocks: int
    uncomputed_tokens: int


@dataclass(slots=True)
class Holding:
    """One sequence that a worker was told of and may still hold; only its ledger changes it."""

    sent_s: float
    uncomputed_tokens: int  # of the prompt, expected to be computed there; 0 once its first token came
    blocks: int  # that the prompt and its first growth take
    settled_s: float | None = None  # when the worker had set its blocks aside: later statuses count them


class WorkerLedger:
    """The account of one worker; instants are the router's."""

    def __init__(self, limits: WorkerLimits, now_s: float) -> None:
        self.limits = limits
        self.holding: dict[SequenceKey, Holding] = {}
        self.latency = _NOTHING_KNOWN
        self._reported: ReportedLoad | None = None
        self._news: dict[SequenceKey, Holding] = {}  # those whose room the last status may not count yet
        self._known_s = now_s  # what was sent and settled before this, the last status knows
        self._tokens = 0  # uncomputed, over all of holding
        self._blocks = 0

    def note_status(self, reported: ReportedLoad, latency: LatencyCoefficients, now_s: float) -> None:
        """The worker's account has come: it knows of all that was settled before it was sent."""
        self._reported = reported
        self.latency = LatencyModel(latency)
        self._known_s = now_s - ON_THE_WAY_S
        self._news = {
            key: held
            for key, held in self._news.items()
            if held.settled_s is None or max(held.sent_s, held.settled_s) >= self._known_s
        }

    def hold(self, key: SequenceKey, holding: Holding) -> None:
        """The worker is about to be told of a sequence."""
        self.holding[key] = self._news[key] = holding
        self._tokens += holding.uncomputed_tokens
        self._blocks += holding.blocks

    def release(self, key: SequenceKey) -> bool:
        """The worker has let go of it; False when nothing was known of it."""
        held = self.holding.pop(key, None)
        if held is None:
            return False
        self._news.pop(key, None)
        self._tokens -= held.uncomputed_tokens
        self._blocks -= held.blocks
        return True

    def settle(self, key: SequenceKey, now_s: float, *, computed: bool = False) -> None:
        """Its blocks are set aside; `computed`: its prompt is too."""
        held = self.holding.get(key)
        if held is None:
            return
        held.settled_s = held.settled_s or now_s
        if computed:
            self._tokens -= held.uncomputed_tokens
            held.uncomputed_tokens = 0

    def load(self, *, alive: bool = True) -> WorkerLoadView:
        """What a routing policy may know."""
        limits, reported = self.limits, self._reported
        if reported is None:
            uncomputed, free = self._tokens, limits.num_blocks - self._blocks
        else:
            news = self._news.values()
            sent_since = sum(held.uncomputed_tokens for held in news if held.sent_s >= self._known_s)
            # the ledger ignores what is done of a prompt, the status what ended since: the lower is nearer. It may
            # be too low: what was expected to be cached and is not, the status alone counts until its first token came
            uncomputed = min(self._tokens, reported.uncomputed_tokens + sent_since)
            free = reported.free_blocks - sum(held.blocks for held in news)
        return WorkerLoadView(
            worker_id=limits.worker_id,
            role=limits.role,
            alive=alive,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            free_blocks=free,
            promised_blocks=reported.promised_blocks if reported else 0,
            num_sequences=len(self.holding),
            uncomputed_tokens=uncomputed,
            chunk_tokens=limits.chunk_tokens,
            latency=self.latency,
        )

    def check(self) -> None:
        """The running sums are those of what it holds."""
        assert self._tokens == sum(held.uncomputed_tokens for held in self.holding.values())
        assert self._blocks == sum(held.blocks for held in self.holding.values())
        assert self._news.keys() <= self.holding.keys()
