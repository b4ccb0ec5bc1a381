"""Each rule of the scheduler by itself; `World` (conftest) looks at every step besides."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pdserve.errors import (
    AlreadyExists,
    BadSampling,
    DeadlineExceeded,
    InvariantViolation,
    NoFreeBlocks,
    PromptTooLong,
    QueueFull,
    RequestError,
)
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason
from scheduling.batching import Batch, SchedulerConfig
from scheduling.sequence import SequenceMode, SequenceState

PREFILL, DECODE, FULL = SequenceMode.PREFILL, SequenceMode.DECODE, SequenceMode.FULL
S = SequenceState
UNKNOWN = SequenceKey("nobody")


def lengths(batch: Batch) -> list[int]:
    return [len(step.token_ids) for step in batch.steps]


def names(batch: Batch) -> list[str]:
    return [step.key.request_id for step in batch.steps]


# ---- what is taken in ----


def test_what_can_never_be_served_is_refused_with_numbers_and_leaves_no_trace(make_world: Any) -> None:
    """Context, pool, an empty prompt, nothing left to generate, a live key: each its own error."""
    world = make_world(num_blocks=4, block_size=4, max_model_len=32)
    with pytest.raises(PromptTooLong, match="32 tokens, limit 31"):
        world.add(prompt=[1] * 32)
    with pytest.raises(PromptTooLong, match="needs 5 KV blocks, the pool has 4"):
        world.add(PREFILL, [1] * 17)
    with pytest.raises(PromptTooLong, match="needs 5 KV blocks"):
        world.add(DECODE, [1] * 16)
    with pytest.raises(RequestError, match="no tokens"):
        world.add(prompt=[])
    with pytest.raises(BadSampling, match="2 output tokens given, max_tokens is 2"):
        world.add(outputs=[1, 2], max_tokens=2)
    world.add(PREFILL, [1] * 16, name="r")
    with pytest.raises(AlreadyExists, match="'r'"):
        world.add(name="r")
    assert world.scheduler.num_waiting == 1
    world.settle()


def test_a_full_queue_refuses(make_world: Any) -> None:
    """The bound is on those that wait, not on those that run."""
    world = make_world(max_queued_sequences=2, max_num_seqs=1)
    world.add()
    world.step()
    world.add(), world.add()
    with pytest.raises(QueueFull, match="2 sequences wait, limit 2"):
        world.add()
    world.settle()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_model_len", 1), ("max_num_seqs", 0), ("max_num_batched_tokens", 7), ("max_queued_sequences", 0),
     ("watermark", 1.0), ("watermark", math.nan), ("mixed_prefill_tokens", 0)],
)  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused(field: str, value: float) -> None:
    """The error names the field; a budget below the seats would stall decodes."""
    with pytest.raises(ValueError, match=field):
        SchedulerConfig(**{"max_model_len": 64, "max_num_seqs": 8, "max_num_batched_tokens": 8, field: value})  # type: ignore[arg-type]


# ---- the step ----


def test_prompts_are_packed_and_cut_at_the_budget(make_world: Any) -> None:
    """Two whole prompts and the head of a third; its tail comes in the next step, after the decodes."""
    world = make_world(max_num_batched_tokens=16)
    for size in (6, 5, 9):
        world.add(prompt=range(size), max_tokens=8)
    batch = world.schedule()
    assert lengths(batch) == [6, 5, 5]
    assert [step.sample is not None for step in batch.steps] == [True, True, False]
    world.complete()
    batch = world.schedule()
    assert [(step.start, len(step.token_ids)) for step in batch.steps] == [(6, 1), (5, 1), (5, 4)]
    world.settle()


def test_decodes_never_stall_for_a_prompt(make_world: Any) -> None:
    """While a long prompt is computed in chunks, every running sequence gets a token in every step."""
    world = make_world(max_num_batched_tokens=8, num_blocks=64, max_model_len=128)
    decoding = [world.add(prompt=[i], max_tokens=20) for i in range(3)]
    world.step()
    world.add(prompt=range(40), max_tokens=1)
    for _ in range(8):
        updates = world.step()
        assert {update.key for update in updates} >= set(decoding)
    assert all(seq.num_uncomputed_tokens <= 1 for seq in world.scheduler._table.running)
    world.settle()


def test_prompt_tokens_beside_decodes_can_be_bounded(make_world: Any) -> None:
    """`mixed_prefill_tokens` bounds a step that decodes, and only such a step."""
    world = make_world(max_num_batched_tokens=32, mixed_prefill_tokens=4, max_model_len=64)
    world.add(prompt=range(20), max_tokens=9)
    assert lengths(world.schedule()) == [20]
    world.complete()
    world.add(prompt=range(30, 50), max_tokens=2), world.add(prompt=[9, 9], max_tokens=2)
    seen = []
    for _ in range(6):
        seen.append(lengths(world.schedule()))
        world.complete()
    assert seen == [[1, 4]] * 5 + [[1, 1, 2]]
    world.settle()


def test_first_come_first_served_within_a_priority_and_nobody_overtakes_a_blocked_head(make_world: Any) -> None:
    """A short sequence that would fit waits behind a long one that does not."""
    world = make_world(num_blocks=6, block_size=4, max_num_seqs=3)
    world.add(prompt=range(12), max_tokens=6, name="running")
    world.step()
    world.add(prompt=range(50, 66), name="long", max_tokens=1), world.add(prompt=[1], name="short", max_tokens=1)
    world.add(prompt=[2], name="urgent", priority=-1, max_tokens=1)
    assert names(world.schedule()) == ["running", "urgent"]
    world.complete()
    order = []
    while world.scheduler.has_work:
        batch = world.schedule()
        world.complete()
        order += [name for name in names(batch) if name not in order]
    assert order == ["running", "long", "short"]


def test_nobody_starves_however_much_comes_after(make_world: Any) -> None:
    """A prompt that needs the whole pool is served though small ones keep coming."""
    world = make_world(num_blocks=8, block_size=4, max_num_seqs=4, max_queued_sequences=1000, watermark=0.2)
    world.add(prompt=[1] * 4, max_tokens=3)
    world.step()
    big = world.add(prompt=range(32), max_tokens=1)
    for i in range(60):
        world.add(prompt=[i, 1, 2], max_tokens=2)
        world.step()
        if big in world.ended:
            break
    assert world.ended[big] == "finished" and i < 8
    world.settle()


def test_seats_are_running_and_reserved_and_held_takes_none(make_world: Any) -> None:
    """RESERVED sits on a seat; HELD and QUARANTINED do not."""
    world = make_world(max_num_seqs=2)
    reserved = world.add(DECODE, range(5))
    world.add(PREFILL, range(5)), world.add(PREFILL, range(6)), world.add(FULL, [1])
    assert len(world.schedule().steps) == 1
    assert world.scheduler.num_running == world.scheduler.num_reserved == 1
    world.complete()
    assert len(world.schedule().steps) == 1, "the HELD one gave its seat to the next"
    world.complete()
    world.quarantine(reserved)
    assert names(world.schedule()) == ["s3"]
    world.settle()


def test_watermark_is_kept_for_growth_and_only_while_something_may_grow(make_world: Any) -> None:
    """A prompt waits while it would take the last blocks from those that decode; alone it may have them all."""
    world = make_world(num_blocks=10, block_size=4, watermark=0.3)
    world.add(prompt=[1], max_tokens=3)
    world.step()
    waiting = world.add(prompt=range(28), max_tokens=1)
    world.step()
    assert world.state(waiting) is S.WAITING
    world.step()
    world.step()
    assert world.ended[waiting] == "finished"
    world.add(PREFILL, range(100, 124))
    world.step()
    assert world.scheduler.block_counts().leased == 6
    alone = world.add(PREFILL, range(200, 216))
    world.step()
    assert world.state(alone) is S.HELD, "nothing that may grow runs"
    world.settle()


def test_one_batch_is_in_flight_at_a_time(make_world: Any) -> None:
    """schedule() without complete(), and results for something else, are our bugs."""
    world = make_world()
    world.add()
    batch = world.schedule()
    with pytest.raises(InvariantViolation):
        world.scheduler.schedule()
    with pytest.raises(InvariantViolation):
        world.scheduler.complete(batch, [])
    with pytest.raises(InvariantViolation):
        world.scheduler.complete(Batch(batch.steps, (), ()), [None])
    world.settle()
    idle = world.schedule()
    assert idle == Batch((), (), ()) and world.scheduler.complete(idle, []) == []


# ---- prefix cache ----


def test_a_second_prompt_computes_only_what_the_cache_lacks(make_world: Any) -> None:
    """At least one token is computed, to sample from, though the whole prompt is cached."""
    world = make_world(block_size=4)
    world.add(prompt=range(8), max_tokens=1)
    world.step()
    same = world.add(prompt=range(8), max_tokens=1)
    (step,) = world.schedule().steps
    assert (step.start, len(step.token_ids)) == (4, 4)
    (update,) = world.complete()
    assert update.first_token_timing.cached_tokens == world.all[same].cached_tokens == 4
    world.add(prompt=range(8), salt="other tenant")
    assert lengths(world.schedule()) == [8]
    world.settle()


def test_a_block_is_not_in_the_cache_before_it_is_computed(make_world: Any) -> None:
    """Z6: the same prompt twice in one batch is computed twice; in chunks, only what is complete is found."""
    world = make_world(block_size=4, max_num_batched_tokens=10, max_num_seqs=2)
    first = world.add(prompt=range(16), max_tokens=3)
    assert lengths(world.schedule()) == [10]
    world.complete()
    world.add(prompt=range(16), max_tokens=1)
    batch = world.schedule()
    assert [(step.start, len(step.token_ids)) for step in batch.steps] == [(10, 6), (8, 4)]
    assert world.state(first) is S.RUNNING
    world.settle()


def test_generated_tokens_enter_the_cache_too(make_world: Any) -> None:
    """The next turn of a conversation finds prompt and answer."""
    world = make_world(block_size=4)
    first = world.add(prompt=range(6), max_tokens=7)
    world.settle()
    world.add(prompt=[*range(6), *world.outputs[first], 1])
    (step,) = world.schedule().steps
    assert step.start == 12
    world.settle()


def test_a_failed_sequence_leaves_nothing_in_the_cache(make_world: Any) -> None:
    """Its numbers went wrong; whoever comes next computes everything."""
    world = make_world(block_size=4, max_num_batched_tokens=8)
    bad = world.add(prompt=range(12), max_tokens=4)
    world.step()
    (update,) = world.step(failing=[bad])
    assert isinstance(update.error, InvariantViolation) and update.ended and not update.holds_blocks
    assert world.pool.counts().free == world.pool.num_blocks
    world.add(prompt=range(12))
    assert world.schedule().steps[0].start == 0
    world.settle()


def test_a_runner_that_does_not_sample_fails_the_sequence_not_the_engine(make_world: Any) -> None:
    """A missing token is an InvariantViolation of that sequence alone."""
    world = make_world()
    world.add(), world.add(prompt=[4, 5])
    batch = world.schedule()
    good = world._compute(batch.steps[1], False)
    world.launches.clear()
    updates = world.scheduler.complete(batch, [None, good])
    assert isinstance(updates[0].error, InvariantViolation) and updates[1].token is not None
    world.absorb(updates)
    world.settle()


# ---- how it ends ----


@pytest.mark.parametrize(
    ("sampling", "reason", "count"),
    [
        ({"max_tokens": 3}, FinishReason.LENGTH, 3),
        ({"max_tokens": 60}, FinishReason.LENGTH, 17),  # context of 20, prompt of 3
        ({"max_tokens": 60, "eos_token_ids": tuple(range(11))}, FinishReason.STOP, 1),
        ({"max_tokens": 60, "stop_token_ids": tuple(range(11)), "min_tokens": 4}, FinishReason.STOP, 5),
        ({"max_tokens": 2, "stop_token_ids": tuple(range(11)), "min_tokens": 9}, FinishReason.LENGTH, 2),
    ],
)
def test_a_sequence_ends_once_for_the_right_reason(
    make_world: Any, sampling: dict[str, Any], reason: FinishReason, count: int
) -> None:
    """End tokens count from `min_tokens` on; then max_tokens, then the context."""
    world = make_world(max_model_len=20)
    key = world.add(**sampling)
    updates = []
    while world.scheduler.has_work:
        updates += world.step()
    assert [update.finish_reason for update in updates] == [None] * (count - 1) + [reason]
    assert [update.output_index for update in updates] == list(range(count))
    assert world.scheduler.get(key) is None and not world.scheduler.abort(key)


def test_a_resumed_attempt_goes_on_where_the_last_one_ended(make_world: Any) -> None:
    """Delivered tokens are computed with the prompt, and counted as output."""
    world = make_world()
    whole = world.add(max_tokens=6)
    world.settle()
    resumed = world.add(outputs=world.outputs[whole][:4], max_tokens=6)
    assert lengths(world.schedule()) == [7 - 4], "the first block is still cached"
    (update,) = world.complete()
    assert update.output_index == 4 and update.first_token_timing is not None
    world.settle()
    assert world.outputs[resumed] == world.outputs[whole]


def test_timing_of_the_first_token(make_world: Any) -> None:
    """Queue until the first step, then until the first token sampled here; said once."""
    world = make_world(max_num_batched_tokens=8)
    world.add(prompt=range(12), max_tokens=3)
    world.clock.advance(2.0)
    world.schedule()
    world.clock.advance(0.5)
    (update,) = world.complete()
    assert update.started_after_s == 2.0 and update.token is None
    world.schedule()
    world.clock.advance(0.25)
    (update,) = world.complete()
    assert update.started_after_s is None
    assert (update.first_token_timing.queue_s, update.first_token_timing.first_token_s) == (2.0, 0.75)
    (update,) = world.step()
    assert update.first_token_timing is None
    world.settle()


# ---- preemption ----


def test_the_youngest_is_preempted_and_loses_nothing(make_world: Any) -> None:
    """Its blocks go to who came before; it is first in the queue, computed again, and its tokens are the same."""
    world = make_world(num_blocks=6, block_size=2, max_model_len=12, prefix_caching=False)
    old, young = world.add(prompt=[1, 2, 3], max_tokens=8), world.add(prompt=[4, 5, 6], max_tokens=7)
    late = world.add(prompt=[7], max_tokens=1)
    preempted = []
    while world.scheduler.num_preemptions == 0:
        batch = world.schedule()
        preempted = list(batch.preempted)
        world.complete()
        world.check()
    assert preempted == [young] and world.state(old) is S.RUNNING and late in world.ended
    assert world.scheduler._table.waiting.head is world.all[young]
    world.settle()
    assert world.ended[young] == "finished" and len(world.outputs[young]) == 7


def test_a_step_that_preempts_admits_nobody(make_world: Any) -> None:
    """What is left of the freed blocks is kept for growth, one step long, even from an urgent sequence."""
    world = make_world(num_blocks=8, block_size=2, max_model_len=20, prefix_caching=False)
    world.add(prompt=[1, 2, 3], max_tokens=12), world.add(prompt=range(7), max_tokens=9)
    world.step()
    urgent = world.add(PREFILL, range(20, 25), priority=-1)
    while world.scheduler.num_preemptions == 0:
        world.step()
    assert world.state(urgent) is S.WAITING and world.pool.num_free >= 3
    assert urgent.request_id in names(world.schedule())
    world.settle()


def test_whoever_came_last_waits_where_it_is_rather_than_preempt(make_world: Any) -> None:
    """With blocks held for handoffs it stays, keeps its KV, and goes on when they are released."""
    world = make_world(num_blocks=4, block_size=4)
    held = world.add(PREFILL, range(8))
    world.step()
    key = world.add(prompt=range(20, 27), max_tokens=4)
    world.step()
    world.step()
    assert world.schedule().steps == () and world.scheduler.has_work
    assert world.state(key) is S.RUNNING and world.scheduler.num_preemptions == 0
    assert world.release(held)
    assert names(world.schedule()) == [key.request_id]
    world.settle()


def test_a_prompt_that_may_be_on_the_wire_is_never_preempted(make_world: Any) -> None:
    """A younger PREFILL keeps its blocks though an older sequence wants one."""
    world = make_world(num_blocks=6, block_size=4, max_num_batched_tokens=8)
    old = world.add(prompt=range(7), max_tokens=9)
    world.step()
    prefill = world.add(PREFILL, range(40, 56))
    assert names(world.schedule()) == [old.request_id, prefill.request_id]
    world.complete()
    assert world.pool.num_free == 0 and len(world.all[old].token_ids) == 9, "it wants a third block"
    while world.state(prefill) is not S.HELD:
        assert names(world.schedule()) == [prefill.request_id]
        world.complete()
    assert world.scheduler.num_preemptions == 0 and len(world.told[prefill]) == 4
    assert world.schedule().steps == () and world.state(old) is S.RUNNING
    assert world.release(prefill)
    assert names(world.schedule()) == [old.request_id]
    world.settle()


def test_a_decode_sequence_that_was_preempted_is_computed_here(make_world: Any) -> None:
    """No second handoff: its prompt and outputs are recomputed in chunks, and the tokens are the same."""
    world = make_world(num_blocks=8, block_size=2, max_num_seqs=2, max_num_batched_tokens=4, prefix_caching=False)
    old = world.add(DECODE, range(4), max_tokens=9)
    young = world.add(DECODE, range(10, 14), max_tokens=9)
    world.schedule()
    assert world.commit(old) and world.commit(young)
    while world.scheduler.num_preemptions == 0:
        world.step()
    assert world.state(young) is S.WAITING and not world.all[young].awaits_kv
    assert world.scheduler.uncomputed_tokens == len(world.all[young].token_ids)
    world.settle()
    assert world.ended == {old: "finished", young: "finished"}


def test_a_sequence_that_outgrows_the_pool_fails_and_says_so(make_world: Any) -> None:
    """Alone in a pool that can never hold it: NoFreeBlocks, with its last token, and nothing preempted."""
    world = make_world(num_blocks=2, block_size=4)
    key = world.add(prompt=range(4), max_tokens=20)
    updates = []
    while world.scheduler.has_work:
        updates += world.step()
    assert isinstance(updates[-1].error, NoFreeBlocks) and "holds 8" in str(updates[-1].error)
    assert len(world.outputs[key]) == 5 and world.pool.num_free == 2


# ---- handoff: the prefill side ----


def test_blocks_are_told_of_as_chunks_complete_them(make_world: Any) -> None:
    """Full blocks with each chunk, the partial last one with the first token, cached ones with the first step."""
    world = make_world(block_size=4, max_num_batched_tokens=8)
    key = world.add(PREFILL, range(18))
    told = []
    while world.state(key) is not S.HELD:
        for update in world.step():
            told.append((update.ready_blocks.first, len(update.ready_blocks.block_ids), update.token is not None))
    assert told == [(0, 2, False), (2, 2, False), (4, 1, True)]
    again = world.add(PREFILL, range(18))
    (update,) = world.step()
    assert (update.ready_blocks.first, len(update.ready_blocks.block_ids)) == (0, 5)
    assert update.ready_blocks.block_ids[:4] == tuple(world.all[key].block_ids[:4])
    assert world.scheduler.block_counts().leased == 6
    assert world.release(key) and not world.release(key)
    assert world.scheduler.block_counts().leased == 5 and world.state(again) is S.HELD
    world.settle()


def test_a_prompt_that_ends_at_token_one_is_not_held(make_world: Any) -> None:
    """In one chunk nothing was told, so its blocks are free; after earlier chunks the caller must end the transfer."""
    world = make_world(block_size=4, max_num_batched_tokens=8)
    world.add(PREFILL, range(6), max_tokens=1)
    (update,) = world.step()
    assert update.finish_reason is FinishReason.LENGTH and update.ready_blocks is None and not update.holds_blocks
    assert world.pool.counts().used == 0
    key = world.add(PREFILL, range(20, 32), max_tokens=1)
    world.step()
    (update,) = world.step()
    assert update.finish_reason is FinishReason.LENGTH and update.holds_blocks and update.ready_blocks is None
    assert world.state(key) is S.QUARANTINED and world.scheduler.block_counts().quarantined == 3
    assert world.abort(key) and world.pool.num_free == world.pool.num_blocks


# ---- handoff: the decode side ----


def test_room_is_kept_for_prompt_and_first_token_and_cached_blocks_are_skipped(make_world: Any) -> None:
    """The whole prompt may come from the cache; not one token of it is computed here."""
    world = make_world(block_size=4)
    world.add(prompt=range(8), max_tokens=1)
    world.settle()
    key = world.add(DECODE, range(8))
    batch = world.schedule()
    (seq,) = batch.reserved
    assert batch.steps == () and seq.key == key
    assert (seq.num_cached_blocks, len(seq.block_ids), seq.cached_tokens) == (2, 3, 8)
    assert world.scheduler.uncomputed_tokens == 0
    assert world.scheduler.promised_blocks == 0, "8 + 4 tokens, the last of which needs no slot"
    assert world.commit(key)
    (step,) = world.schedule().steps
    assert (step.start, len(step.token_ids)) == (8, 1)
    world.settle()


def test_commit_makes_it_run_and_publishes_the_prompt(make_world: Any) -> None:
    """Timing counts from the commit; the next prompt finds the received blocks; a second commit is stale."""
    world = make_world(block_size=4)
    key = world.add(DECODE, range(9), max_tokens=5)
    world.schedule()
    world.clock.advance(3.0)
    assert world.pool.match_prefix(world.all[key].hashes) == [], "nothing is known of the KV before the commit"
    assert world.commit(key)
    world.clock.advance(0.5)
    world.schedule()
    world.clock.advance(0.25)
    (update,) = world.complete()
    assert update.output_index == 1
    assert (update.first_token_timing.queue_s, update.first_token_timing.first_token_s) == (0.5, 0.25)
    assert world.scheduler.try_commit(key, 1) is None and world.scheduler.stale_calls == 1
    world.add(prompt=range(9))
    assert world.schedule().steps[-1].start == 8
    world.settle()


def test_a_first_token_that_ends_the_sequence_ends_it_at_the_commit(make_world: Any) -> None:
    """The update has the reason and no token: the peer delivered that."""
    world = make_world()
    key = world.add(DECODE, range(5), max_tokens=1)
    world.schedule()
    world.targets.clear()
    (update,) = world.scheduler.try_commit(key, 3)
    assert update.finish_reason is FinishReason.LENGTH and update.token is None and not update.holds_blocks
    assert world.pool.num_free == world.pool.num_blocks and world.scheduler.leaked_blocks() == 0


@pytest.mark.parametrize("act", ["quarantine", "abort", "expire"])
def test_a_late_commit_is_stale(make_world: Any, act: str) -> None:
    """F16: after the sequence ended, its KV is refused, and nobody's blocks are touched."""
    world = make_world()
    key = world.add(DECODE, range(5), timeout_s=1.0)
    world.schedule()
    if act == "expire":
        world.clock.advance(1.0)
        (update,) = world.expire()
        assert update.holds_blocks, "the transfer may still write"
    else:
        getattr(world, act)(key)
    assert world.scheduler.try_commit(key, 1) is None
    assert world.scheduler.try_commit(UNKNOWN, 1) is None
    assert world.scheduler.stale_calls == 2
    world.settle()


# ---- the end from outside ----


def test_quarantined_blocks_are_kept_and_counted_until_the_abort(make_world: Any) -> None:
    """Z1: nobody gets them, the cache does not show them, and the seat is free."""
    world = make_world(num_blocks=4, block_size=4)
    key = world.add(DECODE, range(10))
    world.schedule()
    assert world.quarantine(key) and world.quarantine(key), "safe to repeat"
    assert world.scheduler.block_counts().quarantined == 3 and world.scheduler.num_reserved == 0
    waiting = world.add(prompt=range(50, 56), max_tokens=1)
    assert world.schedule().steps == ()
    world.late_write(key)
    assert world.abort(key) and not world.abort(key)
    assert names(world.schedule()) == [waiting.request_id]
    world.settle()


def test_blocks_of_a_sequence_aborted_during_its_step_stay_until_the_step_is_complete(make_world: Any) -> None:
    """The step still writes them; its result is dropped; a second abort is counted and has no effect."""
    world = make_world()
    key, other = world.add(prompt=range(6)), world.add(prompt=range(20, 25))
    world.schedule()
    used = world.pool.counts().used
    assert world.abort(key) and not world.abort(key)
    assert world.state(key) is S.DRAINING and world.pool.counts().used == used
    with pytest.raises(AlreadyExists):
        world.add(name=key.request_id)
    assert [update.key for update in world.complete()] == [other]
    assert world.state(key) is S.FINISHED and world.pool.counts().used < used
    assert world.scheduler.stale_calls == 1
    world.settle()


def test_the_result_of_a_sequence_quarantined_during_its_step_is_dropped(make_world: Any) -> None:
    """Z4: no token, no ready blocks after its end; its blocks stay until the abort, also one during the step."""
    world = make_world()
    keys = [world.add(PREFILL, range(start, start + 6)) for start in (0, 10)]
    world.schedule()
    assert all(world.quarantine(key) for key in keys) and world.abort(keys[1])
    assert [world.state(key) for key in keys] == [S.QUARANTINED, S.DRAINING]
    assert world.complete() == []
    assert [world.state(key) for key in keys] == [S.QUARANTINED, S.FINISHED]
    assert world.scheduler.block_counts().quarantined == 2 and world.scheduler.leaked_blocks() == 0
    world.settle()


def test_late_and_unknown_calls_are_counted_and_change_nothing(make_world: Any) -> None:
    """Z10: no assert, no exception."""
    world = make_world()
    key = world.add(max_tokens=1)
    scheduler = world.scheduler
    assert not scheduler.release(key) and not scheduler.quarantine(key) and scheduler.try_commit(key, 1) is None
    world.settle()
    for call in (scheduler.abort, scheduler.release, scheduler.quarantine):
        assert not call(key) and not call(UNKNOWN)
    assert scheduler.stale_calls == 9
    scheduler.check()


def test_release_does_not_free_what_a_peer_may_still_write(make_world: Any) -> None:
    """`release` is the prefill side's: a quarantined decode sequence keeps its blocks."""
    world = make_world()
    key = world.add(DECODE, range(5))
    world.schedule()
    world.quarantine(key)
    assert not world.scheduler.release(key) and world.scheduler.block_counts().quarantined == 2
    world.settle()


def test_the_deadline_ends_a_sequence_in_every_state(make_world: Any) -> None:
    """Reported once each; freed at once where no transfer can touch the blocks, else kept; later ones stay (Z15)."""
    world = make_world(max_num_batched_tokens=8, block_size=4, max_num_seqs=5)
    held = world.add(PREFILL, range(6), timeout_s=1.0)
    world.step()
    running = world.add(prompt=[1, 2], max_tokens=9, timeout_s=1.0)
    reserved = world.add(DECODE, range(30, 35), timeout_s=1.0)
    sending = world.add(PREFILL, range(40, 60), timeout_s=1.0)
    alive = world.add(prompt=[8, 8], timeout_s=50.0)
    world.step()
    fresh = world.add(PREFILL, range(70, 90), timeout_s=1.0)
    waiting = world.add(prompt=[5], timeout_s=1.0)
    assert world.expire() == []
    world.clock.advance(1.0)
    updates = {update.key: update for update in world.expire()}
    assert {key for key, update in updates.items() if update.holds_blocks} == {held, reserved, sending}
    assert set(updates) == {held, running, reserved, sending, fresh, waiting}
    assert all(isinstance(update.error, DeadlineExceeded) for update in updates.values())
    assert world.expire() == [] and alive not in world.ended
    assert {world.state(key) for key in (running, fresh, waiting)} == {S.FINISHED}
    world.clock.advance(49.0)
    assert [update.key for update in world.expire()] == [alive]
    world.settle()


def test_a_deadline_during_the_step_frees_after_the_step(make_world: Any) -> None:
    """One update, from expire(); the step's result is dropped."""
    world = make_world()
    key = world.add(timeout_s=1.0)
    world.schedule()
    world.clock.advance(2.0)
    assert [update.key for update in world.expire()] == [key]
    assert world.state(key) is S.DRAINING
    assert world.complete() == []
    world.settle()


# ---- views ----


def test_load_is_told_in_tokens_and_blocks(make_world: Any) -> None:
    """What is still to compute, and how far the running ones may still grow."""
    world = make_world(block_size=4, max_num_batched_tokens=10, max_num_seqs=2)
    world.add(prompt=range(16), max_tokens=9), world.add(PREFILL, range(50, 57)), world.add(DECODE, range(5))
    assert (world.scheduler.uncomputed_tokens, world.scheduler.num_waiting) == (23, 3)
    world.step()
    assert (world.scheduler.uncomputed_tokens, world.scheduler.num_running) == (6 + 7, 1)
    assert world.scheduler.promised_blocks == 2
    assert world.scheduler.block_counts().used == 4
    world.settle()
    assert (world.scheduler.uncomputed_tokens, world.scheduler.promised_blocks) == (0, 0)
    assert not world.scheduler.has_work


def test_a_leak_is_seen_at_once(make_world: Any) -> None:
    """A reference that no sequence accounts for shows in the metric, also on a block that is owned besides."""
    world = make_world(block_size=4)
    key = world.add(prompt=range(8))
    world.step()
    assert world.scheduler.leaked_blocks() == 0
    world.pool.match_prefix(world.all[key].hashes[:1])
    assert world.scheduler.leaked_blocks() == 1
    with pytest.raises(InvariantViolation, match="2 references, 1 owners"):
        world.scheduler.check()
