"""The workers that live: who they are, what they said last, and what the router has given to each.

A worker is one boot of one process. What is known of its load is in its ledger (scheduling/ledger.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from pdserve import wire
from pdserve.clock import Clock
from pdserve.errors import IncompatiblePeer
from pdserve.ids import SequenceKey
from pdserve.v1 import worker_pb2
from router.core.messages import StatusReport, WorkerIdentity
from router.core.session import WorkerSession
from router.interface import MetricsTarget, WorkerView
from router.worker_series import WorkerSnapshot
from scheduling.lease import LeaseTable
from scheduling.ledger import Holding, ReportedLoad, WorkerLedger, WorkerLimits
from scheduling.prefix_directory import PrefixDirectory
from scheduling.routing import Role, WorkerLoadView

log = logging.getLogger(__name__)


class Worker:
    """One live worker."""

    def __init__(self, identity: WorkerIdentity, session: WorkerSession, now_s: float) -> None:
        self.identity = identity
        self.session = session
        self.heard_s = now_s
        self.status: StatusReport | None = None
        self.alive = True
        limits = WorkerLimits(
            identity.worker_id, identity.role, identity.num_blocks, identity.block_size, identity.max_num_batched_tokens
        )
        self._ledger = WorkerLedger(limits, now_s)

    @property
    def id(self) -> str:
        return self.identity.worker_id

    @property
    def role(self) -> Role:
        return self.identity.role

    @property
    def holding(self) -> Mapping[SequenceKey, Holding]:
        """Everything it was told of and may still hold."""
        return self._ledger.holding

    def note_status(self, status: StatusReport, now_s: float) -> None:
        """Its account of itself has come."""
        self.status = status
        free = status.blocks.free + status.blocks.cached
        reported = ReportedLoad(free, status.promised_blocks, status.uncomputed_tokens)
        self._ledger.note_status(reported, status.latency, now_s)

    def hold(self, key: SequenceKey, holding: Holding) -> None:
        """It is about to be told of a sequence."""
        self._ledger.hold(key, holding)

    def submit(self, message: worker_pb2.SubmitSequence, key: SequenceKey, holding: Holding) -> None:
        """Give it a sequence."""
        self.hold(key, holding)
        self.session.send(worker_pb2.RouterMessage(submit=message))

    def abort(self, key: SequenceKey) -> None:
        """Tell it to let go of a sequence; nothing to do when it already has. Safe to repeat."""
        if self.release(key) and self.alive:
            self.session.send(worker_pb2.RouterMessage(abort=worker_pb2.AbortSequence(key=wire.key_to_proto(key))))

    def release(self, key: SequenceKey) -> bool:
        """It has let go by itself; False when nothing was known of it."""
        return self._ledger.release(key)

    def settle(self, key: SequenceKey, now_s: float, *, computed: bool = False) -> None:
        """Its blocks are set aside; `computed`: its prompt is too."""
        self._ledger.settle(key, now_s, computed=computed)

    def renew(self) -> None:
        """Extend the leases of everything it holds."""
        if self.holding:
            keys = [wire.key_to_proto(key) for key in self.holding]
            self.session.send(worker_pb2.RouterMessage(renew=worker_pb2.RenewLeases(keys=keys)))

    def load(self) -> WorkerLoadView:
        """What a routing policy may know."""
        return self._ledger.load(alive=self.alive)

    def snapshot(self) -> WorkerSnapshot:
        """What the metrics show of it."""
        return WorkerSnapshot(self.id, self.role.value, self.status)

    def check(self) -> None:
        """The running sums are those of what it holds."""
        self._ledger.check()


class Fleet:
    """Every live worker by id, and what dead ones still owe."""

    def __init__(self, clock: Clock) -> None:
        self.prefixes = PrefixDirectory()  # of every live worker
        self._clock = clock
        self._live: dict[str, Worker] = {}
        self._known: dict[str, WorkerIdentity] = {}  # live or not, for those who look from outside
        # Sequences of a lost session: should the same boot come back within a lease, it is told to abort them.
        self._orphans: LeaseTable[tuple[bytes, SequenceKey]] = LeaseTable(clock)

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def get(self, worker_id: str) -> Worker | None:
        return self._live.get(worker_id)

    def has(self, role: Role) -> bool:
        """Whether one of the role lives."""
        return any(worker.role is role for worker in self._live.values())

    def admit(self, identity: WorkerIdentity, session: WorkerSession) -> Worker:
        """Take a worker in. Errors: `IncompatiblePeer` when its id is live or its layout is not that of the others."""
        for other in self._live.values():
            if other.id == identity.worker_id:
                raise IncompatiblePeer(
                    f"worker id {identity.worker_id} at {identity.address} is already live at {other.identity.address}"
                )
            if other.identity.layout_fingerprint != identity.layout_fingerprint:
                raise IncompatiblePeer(
                    f"worker {identity.worker_id} at {identity.address} has KV layout "
                    f"{identity.layout_fingerprint.hex()[:12]}, {other.id} and the others have "
                    f"{other.identity.layout_fingerprint.hex()[:12]}: not the same model, dtype or block size"
                )
        worker = Worker(identity, session, self._clock.now())
        self._live[worker.id] = worker
        self._known[worker.id] = identity
        if identity.prefix_caching:
            self.prefixes.add(worker.id, identity.num_blocks, identity.block_size)
        self._abort_orphans(worker)
        return worker

    def remove(self, worker: Worker) -> None:
        """It is lost. What it held is remembered for a lease, in case only the session was lost."""
        worker.alive = False
        if self._live.get(worker.id) is worker:
            del self._live[worker.id]
            self.prefixes.remove(worker.id)
        for key in list(worker.holding):
            self._orphans.grant((worker.identity.boot_id, key))
            worker.release(key)

    def forget(self, address: str) -> None:
        """A worker at this address is no longer expected."""
        self._known = {name: known for name, known in self._known.items() if known.address != address}

    def sweep(self) -> None:
        """Drop orphans that their worker has freed by itself by now."""
        self._orphans.expired()

    def loads(self) -> list[WorkerLoadView]:
        return [worker.load() for worker in self._live.values()]

    def views(self) -> list[WorkerView]:
        """Every worker known, by id."""
        return [
            WorkerView(name, known.role.value, known.device, name in self._live)
            for name, known in sorted(self._known.items())
        ]

    def lost_in_words(self) -> str:
        """Who was up and is not, as the end of a sentence."""
        names = [view.id for view in self.views() if not view.up]
        return f" ({', '.join(names)} lost)" if names else ""

    def metrics_targets(self) -> list[MetricsTarget]:
        """The live workers that serve metrics, by id; on the host where they answer."""
        found = []
        for name, worker in sorted(self._live.items()):
            identity = worker.identity
            if identity.metrics_port:
                host = identity.address.rpartition(":")[0]
                found.append(MetricsTarget(f"{host}:{identity.metrics_port}", name, identity.role.value))
        return found

    def check(self) -> None:
        """A live worker is alive and under its own id."""
        for name, worker in self._live.items():
            assert worker.alive and worker.id == name, f"{name} is live and lost"
            worker.check()
        self.prefixes.check()

    def _abort_orphans(self, worker: Worker) -> None:
        for boot_id, key in self._orphans.held():
            if boot_id == worker.identity.boot_id:
                self._orphans.release((boot_id, key))
                worker.session.send(
                    worker_pb2.RouterMessage(abort=worker_pb2.AbortSequence(key=wire.key_to_proto(key)))
                )
