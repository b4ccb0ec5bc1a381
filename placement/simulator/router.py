"""The router: the real policy over the real ledgers; it hears of everything one message later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pdserve.errors import RequestError, ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from placement.simulator.cluster import ClusterSpec, WorkerSpec
from placement.simulator.events import EventQueue
from placement.simulator.fleet import SimFleet
from placement.simulator.handoffs import Handoffs
from placement.simulator.links import Links
from placement.simulator.requests import Outcome, RequestLife, SimRequest, prompt_token_ids
from placement.simulator.worker import TOKEN_ID, SimWorker
from scheduling.batching import SequenceUpdate
from scheduling.ledger import Holding
from scheduling.routing import RequestView, RoutingPolicy
from scheduling.routing_policies import LeastPredictedLatency, RoundRobin
from scheduling.sequence import Sequence as EngineSequence
from scheduling.sequence import SequenceMode


class SimRouter:
    """Takes requests, places them, follows them to their end; the listener of every worker."""

    def __init__(self, spec: ClusterSpec, events: EventQueue) -> None:
        self.spec = spec
        self.events = events
        self.links = Links(spec.link, events)
        self.handoffs = Handoffs(
            events, self.links, spec.delays.message_s, spec.block_bytes, self._on_committed, self._on_freed
        )
        policy = RoundRobin if spec.round_robin else LeastPredictedLatency
        self._policy: RoutingPolicy = policy(spec.routing)
        self.fleet = SimFleet(spec, events, self)
        self._running: dict[SequenceKey, RequestLife] = {}
        self._growth = spec.routing.growth_tokens
        for worker in spec.workers:
            self.fleet.add(worker)

    # ---- workers ----

    def add_worker(self, spec: WorkerSpec) -> None:
        """A worker starts, empty; should one of its name have just died, that is heard first."""
        if (before := self.fleet.workers.get(spec.worker_id)) is not None:
            self._on_lost(before)
        self.fleet.add(spec)

    def remove_worker(self, name: str) -> None:
        """A worker dies, and its pairs with it; the router hears of it behind its last words."""
        worker = self.fleet.workers[name]
        worker.die()
        self.links.drop(name)
        for other, key in self.handoffs.worker_lost(worker):
            if (life := self._running.get(key)) is not None:
                self._tell(self._on_failure, life, other, _lost(worker))
        self._tell(self._on_lost, worker)

    def _on_lost(self, worker: SimWorker) -> None:
        """What needs it fails, as in the product: nothing is retried. Behind token 1 its decode worker alone decides:
        what it has committed goes on; else it has said that the handoff failed."""
        if self.fleet.workers.get(worker.spec.worker_id) is not worker:
            return
        self.fleet.remove(worker.spec.worker_id)
        for life in [life for life in self._running.values() if worker in life.parties]:
            if worker is life.decode or life.first_s is None:
                self._end(life, Outcome.FAILED, _lost(worker))

    @property
    def is_quiet(self) -> bool:
        """No request is under way."""
        return not self._running and not len(self.handoffs)

    # ---- a request's life ----

    def submit(self, life: RequestLife) -> None:
        """Place it and send it out."""
        request = life.request
        try:
            self._place(life, request)
        except ServingError as error:
            self._end(life, Outcome.REJECTED, error.message)
            return
        self._running[life.key] = life
        self._dispatch(life)

    def _place(self, life: RequestLife, request: SimRequest) -> None:
        if len(self._running) >= self.spec.max_in_flight:
            raise RequestError(f"{len(self._running)} requests are running")
        left_s = life.request.arrival_s + request.deadline_s - self.events.now()
        life.prefix_keys = self.fleet.chunk_keys(request)
        cached = self.fleet.cached_tokens(life.prefix_keys, request.prompt_tokens)
        view = RequestView(request.prompt_tokens, request.output_tokens, left_s, cached)
        placement = self._policy.choose(view, self.fleet.loads(), self.events.now())
        life.decode = self.fleet.workers[placement.decode_worker]
        if placement.prefill_worker is not None:
            life.prefill = self.fleet.workers[placement.prefill_worker]
        life.expected_cached_tokens = placement.cached_tokens
        self.fleet.note_prompt(life.prefill or life.decode, life)
        if life.prefill is not None:
            self.fleet.reserve_prompt(life.decode, life)

    def _dispatch(self, life: RequestLife) -> None:
        assert life.decode is not None
        token_ids = prompt_token_ids(life.request, life.index)
        if life.prefill is None:
            self._send(life, life.decode, SequenceMode.FULL, token_ids, self._growth)
            return
        self._send(life, life.decode, SequenceMode.DECODE, token_ids, self._growth)
        self._send(life, life.prefill, SequenceMode.PREFILL, token_ids, 0)
        num_blocks = life.prefill.scheduler.blocks.blocks_for(life.request.prompt_tokens)
        self._tell(self._begin_handoff, life, num_blocks)

    def _send(
        self, life: RequestLife, worker: SimWorker, mode: SequenceMode, token_ids: list[int], growth: int
    ) -> None:
        request, now_s = life.request, self.events.now()
        tokens = request.prompt_tokens + min(request.output_tokens, growth)
        uncomputed = request.prompt_tokens - life.expected_cached_tokens if worker is life.computing else 0
        holding = Holding(now_s, uncomputed, -(-tokens // worker.spec.block_size))
        self.fleet.hold(worker, life.key, holding)
        self._tell(self._submit_to, life, worker, mode, token_ids)

    def _submit_to(self, life: RequestLife, worker: SimWorker, mode: SequenceMode, token_ids: list[int]) -> None:
        if life.ended or not worker.alive:
            return
        request = life.request
        sampling = SamplingParams(max_tokens=request.output_tokens)
        deadline_s = request.arrival_s + request.deadline_s
        now_s = self.events.now()
        seq = EngineSequence(life.key, mode, token_ids, sampling, arrival_s=now_s, deadline_s=deadline_s)

        def submit() -> None:
            try:
                worker.submit(seq)
            except ServingError as error:
                self._tell(self._on_failure, life, worker, error.message)

        worker.put(submit)

    def _begin_handoff(self, life: RequestLife, num_blocks: int) -> None:
        assert life.prefill is not None and life.decode is not None
        if life.ended or not (life.prefill.alive and life.decode.alive):
            return
        self.handoffs.begin(life.key, life.prefill, life.decode, num_blocks)

    # ---- what workers say ----

    def on_room(self, worker: SimWorker, key: SequenceKey, block_ids: tuple[int, ...], skip: int) -> None:
        self.handoffs.on_room(key, block_ids, skip)
        self._tell(self.fleet.settle, worker, key)

    def on_updates(self, worker: SimWorker, updates: Sequence[SequenceUpdate]) -> None:
        for update in updates:
            if update.is_plain:
                continue
            life = self._running.get(update.key)
            prefills = life is not None and worker is life.prefill
            if update.ready_blocks is not None:
                ready = update.ready_blocks
                self.handoffs.on_blocks_ready(update.key, ready.first, ready.block_ids, ready.generations)
            if prefills and update.token is not None and update.finish_reason is None:
                self.handoffs.on_first_token(update.key, TOKEN_ID)
            if update.ended and update.holds_blocks and not self.handoffs.abort(update.key, worker, "ended"):
                worker.put(partial(worker.scheduler.abort, update.key))
        self._tell(self._on_updates, worker, updates)

    def _on_committed(self, key: SequenceKey) -> None:
        self._tell(self._committed, key)

    def _on_freed(self, worker: SimWorker, key: SequenceKey) -> None:
        self._tell(self.fleet.release, worker, key)

    # ---- one message later ----

    def _tell(self, action: Callable[..., object], *args: object) -> None:
        self.events.after(self.spec.delays.message_s, action, *args)

    def _committed(self, key: SequenceKey) -> None:
        life = self._running.get(key)
        if life is not None and life.decode is not None:
            self.fleet.settle(life.decode, key)
            self.fleet.note_prompt(life.decode, life)
            life.committed_s = self.events.now()

    def _on_failure(self, life: RequestLife, worker: SimWorker, message: str) -> None:
        self.fleet.release(worker, life.key)
        if not life.ended:
            self._end(life, Outcome.FAILED, message)

    def _on_updates(self, worker: SimWorker, updates: Sequence[SequenceUpdate]) -> None:
        now_s = self.events.now()
        for update in updates:
            life = self._running.get(update.key)
            if life is None:
                continue
            if update.error is not None:
                self._end(life, Outcome.FAILED, update.error.message)
                continue
            if update.token is None:
                if update.finish_reason is not None:
                    self._finish(life, worker)
                continue
            if life.first_s is None:
                life.first_s = now_s
            else:
                life.max_gap_s = max(life.max_gap_s, now_s - life.last_s)
            life.last_s = now_s
            life.num_tokens += 1
            if update.first_token_timing is not None:
                timing = update.first_token_timing
                if worker is life.computing:
                    life.prefill_s, life.cached_tokens = timing.first_token_s, timing.cached_tokens
                    self.fleet.missed(worker, life)
                else:
                    life.decode_wait_s = timing.queue_s
                self.fleet.settle(worker, update.key, computed=True)
            if update.finish_reason is not None:
                self._finish(life, worker)

    def _finish(self, life: RequestLife, worker: SimWorker) -> None:
        self.fleet.release(worker, life.key)
        if worker is life.decode:
            self.fleet.note_answer(worker, life)
        self._end(life, Outcome.FINISHED, "")

    def _end(self, life: RequestLife, outcome: Outcome, error: str) -> None:
        """The one way out; its workers let go of what they still have, but for a source that is about to by itself."""
        life.ended, life.outcome, life.error = True, outcome, error
        self._running.pop(life.key, None)
        for worker in life.parties:
            freeing = worker is life.prefill and life.committed_s is not None and outcome is Outcome.FINISHED
            if not freeing and self.fleet.release(worker, life.key):
                self._tell(self._abort_at, worker, life.key)

    def _abort_at(self, worker: SimWorker, key: SequenceKey) -> None:
        if worker.alive and not self.handoffs.abort(key, worker, "ended by the router"):
            worker.put(partial(worker.scheduler.abort, key))


def _lost(worker: SimWorker) -> str:
    """What the real router says."""
    return f"{worker.spec.role.value} worker {worker.spec.worker_id} was lost"
