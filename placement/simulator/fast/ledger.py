"""`scheduling.ledger` and `scheduling.routing`, compiled: what the router knows, and whom it chooses."""

from __future__ import annotations

from numba import njit

from placement.simulator.fast.records import NEVER, Records
from placement.simulator.fast.scheduler import blocks_for
from scheduling.ledger import ON_THE_WAY_S

PREFILL_ROLE, DECODE_ROLE = 0, 1


@njit(cache=True)
def hold(workers: Records, seqs: Records, s: int, index: int, now_s: float, uncomputed: int, blocks: int) -> None:
    """`WorkerLedger.hold`."""
    worker, seq = workers[index], seqs[s]
    seq.held, seq.worker, seq.sent_s, seq.uncomputed, seq.room = 1, index, now_s, uncomputed, blocks
    seq.settled_s = NEVER
    worker.ledger_tokens += uncomputed
    worker.ledger_blocks += blocks
    worker.num_held += 1
    seq.news, seq.news_prev, seq.news_next = 1, -1, worker.news_head
    if worker.news_head >= 0:
        seqs[worker.news_head].news_prev = s
    worker.news_head = s
    worker.news_room += blocks
    worker.news_tokens += uncomputed


@njit(cache=True)
def _no_news(worker: Records, seqs: Records, s: int) -> None:
    seq = seqs[s]
    if seq.news == 0:
        return
    seq.news = 0
    worker.news_room -= seq.room
    if seq.sent_s >= worker.known_s:
        worker.news_tokens -= seq.uncomputed
    if seq.news_prev >= 0:
        seqs[seq.news_prev].news_next = seq.news_next
    else:
        worker.news_head = seq.news_next
    if seq.news_next >= 0:
        seqs[seq.news_next].news_prev = seq.news_prev


@njit(cache=True)
def release(workers: Records, seqs: Records, s: int) -> bool:
    """`WorkerLedger.release`."""
    seq = seqs[s]
    if seq.held == 0:
        return False
    worker = workers[seq.worker]
    seq.held = 0
    worker.num_held -= 1
    _no_news(worker, seqs, s)
    worker.ledger_tokens -= seq.uncomputed
    worker.ledger_blocks -= seq.room
    return True


@njit(cache=True)
def settle(workers: Records, seqs: Records, s: int, now_s: float, computed: bool) -> None:
    """`WorkerLedger.settle`."""
    seq = seqs[s]
    if seq.held == 0:
        return
    if seq.settled_s < 0.0:
        seq.settled_s = now_s
    if computed:
        worker = workers[seq.worker]
        worker.ledger_tokens -= seq.uncomputed
        if seq.news == 1 and seq.sent_s >= worker.known_s:
            worker.news_tokens -= seq.uncomputed
        seq.uncomputed = 0


@njit(cache=True)
def note_status(worker: Records, seqs: Records, now_s: float) -> None:
    """`WorkerLedger.note_status`, of the status that was on its way."""
    worker.has_status = 1
    worker.reported_free = worker.sent_free
    worker.reported_promised = worker.sent_promised
    worker.reported_uncomputed = worker.sent_uncomputed
    worker.coefficients[:] = worker.sent_coefficients
    worker.known_s = now_s - ON_THE_WAY_S
    worker.news_tokens = 0
    s = worker.news_head
    while s >= 0:
        if seqs[s].sent_s >= worker.known_s:
            worker.news_tokens += seqs[s].uncomputed
        s = seqs[s].news_next
    s = worker.news_head
    while s >= 0:
        following = seqs[s].news_next
        settled_s = seqs[s].settled_s
        if settled_s >= 0.0 and max(seqs[s].sent_s, settled_s) < worker.known_s:
            _no_news(worker, seqs, s)
        s = following


@njit(cache=True)
def _load(worker: Records) -> tuple[int, int]:
    """`WorkerLedger.load`: uncomputed tokens, free blocks. What it sums over the news is kept up to date instead."""
    if worker.has_status == 0:
        return worker.ledger_tokens, worker.num_blocks - worker.ledger_blocks
    tokens = min(worker.ledger_tokens, worker.reported_uncomputed + worker.news_tokens)
    return tokens, worker.reported_free - worker.news_room


@njit(cache=True)
def _prefill_s(c: Records, tokens: int, chunk: int) -> float:
    """`LatencyModel.prefill_s`."""
    full, rest = tokens // chunk, tokens % chunk
    steps = full + (1 if rest > 0 else 0)
    context = chunk * full * (full + 1) // 2 + (tokens if rest else 0)
    return float(steps * c[0] + tokens * c[1] + context * c[3])


@njit(cache=True)
def _ttft_s(c: Records, queued: int, own: int, chunk: int) -> float:
    """`LatencyModel.predicted_ttft_s`."""
    joint_steps = (queued + own + chunk - 1) // chunk
    own_steps = (own + chunk - 1) // chunk
    return float(_prefill_s(c, own, chunk) + ((joint_steps - own_steps) * c[0] + queued * (c[1] + c[3])))


@njit(cache=True)
def _known(worker: Records) -> bool:
    c = worker.coefficients
    return bool(c[0] != 0.0 or c[1] != 0.0 or c[2] != 0.0 or c[3] != 0.0)


@njit(cache=True)
def _median_latency(workers: Records, chosen: Records, n: int, prompt: int) -> int:
    """`_as_fast_as_others`: the worker whose latency the unknown ones get; -1 where nobody needs any."""
    num_known = 0
    for i in range(n):
        if _known(workers[chosen[i]]):
            num_known += 1
    if num_known == 0 or num_known == n:
        return -1
    chunk = workers[chosen[0]].budget
    for i in range(n):  # the one with num_known // 2 known ones before it, ties in order, as a stable sort has it
        if not _known(workers[chosen[i]]):
            continue
        mine, before = _prefill_s(workers[chosen[i]].coefficients, prompt, chunk), 0
        for k in range(n):
            if k == i or not _known(workers[chosen[k]]):
                continue
            other = _prefill_s(workers[chosen[k]].coefficients, prompt, chunk)
            if other < mine or (other == mine and k < i):
                before += 1
        if before == num_known // 2:
            return int(chosen[i])
    return -1


@njit(cache=True)
def _candidates(workers: Records, role: int, tokens: int, chosen: Records) -> int:
    n = 0
    for index in range(len(workers)):
        if workers[index].role == role and blocks_for(workers[index], tokens) <= workers[index].num_blocks:
            chosen[n] = index
            n += 1
    return n


@njit(cache=True)
def choose(w: Records, workers: Records, prompt: int, output: int, chosen: Records) -> tuple[int, int]:
    """`LeastPredictedLatency.choose` or `RoundRobin.choose`: (prefill worker or -1, decode worker)."""
    turn = w.turn
    w.turn += 1
    prefill = -1
    if prompt > w.local:
        n = _candidates(workers, PREFILL_ROLE, prompt, chosen)
        if n > 0:
            prefill = chosen[turn % n] if w.round_robin == 1 else _least_prefill(workers, chosen, n, turn + 1, prompt)
    n = _candidates(workers, DECODE_ROLE, prompt + 1, chosen)
    if w.round_robin == 1:
        return prefill, int(chosen[turn % n])
    return prefill, _best_decode(workers, chosen, n, turn + 1, prompt, output, w.growth, prefill < 0)


@njit(cache=True)
def _least_prefill(workers: Records, chosen: Records, n: int, turn: int, prompt: int) -> int:
    stand_in = _median_latency(workers, chosen, n, prompt)
    best, best_s, best_tokens, best_held = -1, 0.0, 0, 0
    for i in range(n):
        index = chosen[(i + turn % n) % n]
        worker = workers[index]
        tokens, _ = _load(worker)
        c = worker.coefficients if stand_in < 0 or _known(worker) else workers[stand_in].coefficients
        seconds, held = _ttft_s(c, tokens, prompt, worker.budget), worker.num_held
        better = best < 0 or seconds < best_s
        if best >= 0 and seconds == best_s:
            better = tokens < best_tokens or (tokens == best_tokens and held < best_held)
        if better:
            best, best_s, best_tokens, best_held = index, seconds, tokens, held
    return int(best)


@njit(cache=True)
def _best_decode(
    workers: Records, chosen: Records, n: int, turn: int, prompt: int, output: int, growth: int, computes: bool
) -> int:
    stand_in = _median_latency(workers, chosen, n, prompt)
    best, best_lack, best_s, best_held, best_room = -1, 0, 0.0, 0, 0
    for i in range(n):
        index = chosen[(i + turn % n) % n]
        worker = workers[index]
        tokens, free = _load(worker)
        promised = worker.reported_promised if worker.has_status == 1 else 0
        room = free - promised - blocks_for(worker, prompt + min(output, growth))
        lack, held, seconds = -min(room, 0), worker.num_held, 0.0
        if computes:
            c = worker.coefficients if stand_in < 0 or _known(worker) else workers[stand_in].coefficients
            seconds = _ttft_s(c, tokens, prompt, worker.budget)
        better = best < 0 or lack < best_lack
        if best >= 0 and lack == best_lack:
            better = seconds < best_s
            if seconds == best_s:
                better = held < best_held or (held == best_held and -room < -best_room)
        if better:
            best, best_lack, best_s, best_held, best_room = index, lack, seconds, held, room
    return int(best)
