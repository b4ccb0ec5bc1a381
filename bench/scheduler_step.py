"""What one step costs the scheduler, in microseconds per sequence: schedule() and complete() without a model.

    python -m bench.scheduler_step [--seqs 256] [--steps 400] [--repeats 5]

The steps decode `seqs` running sequences in a pool with room for all; blocks fill, are hashed and published on the way.
CPU time of the thread, best of the repeats: other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import statistics
import time

from bench.arguments import positive
from pdserve.clock import MonotonicClock
from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.batching import Scheduler, SchedulerConfig
from scheduling.blocks import BlockPool
from scheduling.sequence import Sequence, SequenceMode


def running_scheduler(num_seqs: int, prompt_tokens: int, max_tokens: int, block_size: int) -> Scheduler:
    """A scheduler whose sequences have all computed their prompts and sampled one token."""
    blocks_each = (prompt_tokens + max_tokens) // block_size + 1
    pool = BlockPool(num_seqs * blocks_each, block_size)
    config = SchedulerConfig(
        max_model_len=prompt_tokens + max_tokens + 1,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_seqs * prompt_tokens,
        max_queued_sequences=num_seqs,
    )
    scheduler = Scheduler(config, pool, MonotonicClock())
    sampling = SamplingParams(max_tokens=max_tokens, eos_token_ids=(2,))
    for index in range(num_seqs):
        prompt = [1_000 + index] * prompt_tokens
        scheduler.add(Sequence(SequenceKey(f"s{index}"), SequenceMode.FULL, prompt, sampling))
    token = SampledToken(7)
    while any(seq.num_uncomputed_tokens > 1 for index in range(num_seqs) if (seq := _get(scheduler, index))):
        batch = scheduler.schedule()
        scheduler.complete(batch, [token if step.sample else None for step in batch.steps])
    return scheduler


def _get(scheduler: Scheduler, index: int) -> Sequence | None:
    return scheduler.get(SequenceKey(f"s{index}"))


def measure(scheduler: Scheduler, num_steps: int) -> tuple[float, float]:
    """Seconds per sequence and step of schedule() and of complete()."""
    token = SampledToken(7)
    schedule_s = complete_s = 0.0
    sequences = 0
    for _ in range(num_steps):
        begin = time.thread_time()
        batch = scheduler.schedule()
        middle = time.thread_time()
        results = [token] * len(batch.steps)
        resumed = time.thread_time()
        scheduler.complete(batch, results)
        complete_s += time.thread_time() - resumed
        schedule_s += middle - begin
        sequences += len(batch.steps)
    return schedule_s / sequences, complete_s / sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqs", type=positive, default=256)
    parser.add_argument("--steps", type=positive, default=400)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--prompt-tokens", type=positive, default=64)
    parser.add_argument("--block-size", type=positive, default=16)
    args = parser.parse_args()
    rows = []
    for _ in range(args.repeats):
        scheduler = running_scheduler(args.seqs, args.prompt_tokens, args.steps + 2, args.block_size)
        rows.append(measure(scheduler, args.steps))
    totals = [1e6 * (schedule_s + complete_s) for schedule_s, complete_s in rows]
    best = min(rows, key=sum)
    print(
        f"{args.seqs} running, {args.steps} steps: {min(totals):.2f} us per sequence and step "
        f"(schedule {1e6 * best[0]:.2f}, complete {1e6 * best[1]:.2f}; median {statistics.median(totals):.2f}, "
        f"worst {max(totals):.2f}); {min(totals) * args.seqs:,.0f} us per step"
    )


if __name__ == "__main__":
    main()
