"""What the simulated router knows of its workers: the real ledgers and prefix directory, told one message later."""

from __future__ import annotations

from pdserve.ids import SequenceKey
from placement.simulator.cluster import ClusterSpec, WorkerSpec
from placement.simulator.events import EventQueue
from placement.simulator.machine import Machine
from placement.simulator.prefixes import ChunkNames
from placement.simulator.requests import RequestLife, SimRequest
from placement.simulator.worker import SimWorker, WorkerCounts, WorkerListener
from scheduling.latency import LatencyCoefficients
from scheduling.ledger import Holding, ReportedLoad, WorkerLedger, WorkerLimits
from scheduling.prefix_directory import PrefixDirectory
from scheduling.routing import WorkerLoadView


class SimFleet:
    """Every live worker by name, and the router's account of it."""

    def __init__(self, spec: ClusterSpec, events: EventQueue, listener: WorkerListener) -> None:
        """Without workers. `listener` hears of each that comes."""
        self.workers: dict[str, SimWorker] = {}
        self.counts: dict[str, WorkerCounts] = {worker.worker_id: WorkerCounts() for worker in spec.workers}
        self._spec = spec
        self._events = events
        self._listener = listener
        self._machine = None if spec.slowdown is None else Machine(spec.slowdown, events)
        self._ledgers: dict[str, WorkerLedger] = {}
        self._drains: set[str] = set()
        self._prefixes = PrefixDirectory()
        self._chunk_names = ChunkNames()

    # ---- workers ----

    def add(self, spec: WorkerSpec) -> None:
        """A worker starts, empty."""
        name, now_s = spec.worker_id, self._events.now()
        worker = self.workers[name] = SimWorker(
            spec,
            self._events,
            self._spec.delays,
            self._listener,
            self.counts[name],
            self._machine,
            self._spec.warming,
            self._spec.jitter,
        )
        chunk_tokens = spec.scheduler.max_num_batched_tokens
        limits = WorkerLimits(name, spec.role, spec.num_blocks, spec.block_size, chunk_tokens)
        ledger = self._ledgers[name] = WorkerLedger(limits, now_s)
        if spec.prior is not None:
            ledger.note_status(worker.reported()[0], spec.prior, now_s)
        if spec.prefix_caching:
            self._prefixes.add(name, spec.num_blocks, spec.block_size)

    def remove(self, name: str) -> None:
        """What is known of a worker is forgotten."""
        del self.workers[name], self._ledgers[name]
        self._drains.discard(name)
        self._prefixes.remove(name)

    def drain(self, name: str) -> None:
        """It gets no more requests."""
        self._drains.add(name)

    def is_idle(self, name: str) -> bool:
        """Whether nothing of any request is left on a worker, as the router knows it."""
        return not self._ledgers[name].holding

    def report_statuses(self) -> None:
        """Every worker's account of itself; the message takes its delay."""
        for worker in self.workers.values():
            self._events.after(self._spec.delays.message_s, self._on_status, worker, *worker.reported())

    def _on_status(self, worker: SimWorker, load: ReportedLoad, latency: LatencyCoefficients) -> None:
        ledger = self._ledgers.get(worker.spec.worker_id)
        if ledger is not None and worker.alive:
            ledger.note_status(load, latency, self._events.now())

    # ---- what a choice reads ----

    def loads(self) -> list[WorkerLoadView]:
        """Of every worker."""
        return [ledger.load(alive=name not in self._drains) for name, ledger in self._ledgers.items()]

    def chunk_keys(self, request: SimRequest) -> list[int]:
        """Of a prompt, for the directory; called once for each request."""
        return self._chunk_names.of(request) if self._prefixes else []

    def cached_tokens(self, keys: list[int], prompt_tokens: int) -> dict[str, int]:
        """Of a prompt, expected to be cached, by worker."""
        return self._prefixes.expected(keys, prompt_tokens)

    # ---- what it is told ----

    def note_prompt(self, worker: SimWorker, life: RequestLife) -> None:
        """A request's prompt is there, or will be."""
        self._prefixes.note(worker.spec.worker_id, life.prefix_keys)

    def reserve_prompt(self, worker: SimWorker, life: RequestLife) -> None:
        """A request's prompt is to come there."""
        self._prefixes.reserve(worker.spec.worker_id, life.prefix_keys)

    def note_answer(self, worker: SimWorker, life: RequestLife) -> None:
        """A request ended there: its prompt is, and its answer but for the last token."""
        if self._prefixes:
            kept = life.request.prompt_tokens + life.num_tokens - 1
            keys = self._chunk_names.with_answer(life.request, life.prefix_keys, kept)
            self._prefixes.note(worker.spec.worker_id, keys)

    def missed(self, worker: SimWorker, life: RequestLife) -> None:
        """Less of its prompt was cached than was expected, or not."""
        self._prefixes.missed(worker.spec.worker_id, life.expected_cached_tokens - life.cached_tokens)

    def hold(self, worker: SimWorker, key: SequenceKey, holding: Holding) -> None:
        """The worker, which lives, is about to be told of a sequence."""
        self._ledgers[worker.spec.worker_id].hold(key, holding)

    def settle(self, worker: SimWorker, key: SequenceKey, *, computed: bool = False) -> None:
        """As `WorkerLedger.settle`; of a worker that is gone nothing is noted."""
        if (ledger := self._ledgers.get(worker.spec.worker_id)) is not None:
            ledger.settle(key, self._events.now(), computed=computed)

    def release(self, worker: SimWorker, key: SequenceKey) -> bool:
        """As `WorkerLedger.release`; False for a worker that is gone."""
        ledger = self._ledgers.get(worker.spec.worker_id)
        return ledger is not None and ledger.release(key)
