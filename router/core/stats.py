"""One line in the log every ten seconds, when something happened."""

from __future__ import annotations

from collections.abc import Iterable

from router.core.fleet import Worker


class StatsLine:
    """Remembers the counts of the last line."""

    def __init__(self) -> None:
        self._tokens = 0
        self._was_running = False

    def next(self, running: int, generated_tokens: int, seconds: float, workers: Iterable[Worker]) -> str | None:
        """The line for the `seconds` since the last call; None when nothing ran."""
        fresh = generated_tokens - self._tokens
        self._tokens = generated_tokens
        quiet = not running and not fresh and not self._was_running
        self._was_running = running > 0
        if quiet:
            return None
        parts = [f"running {running}", f"{fresh / seconds:.1f} tokens/s"]
        return ", ".join([*parts, *(_use(worker) for worker in workers)])


def _use(worker: Worker) -> str:
    if worker.status is None:
        return f"{worker.id} silent"
    free = worker.status.blocks.free + worker.status.blocks.cached
    used = 100.0 * (1.0 - free / worker.identity.num_blocks)
    return (
        f"{worker.id} KV {used:.0f} % running {worker.status.running_sequences} "
        f"waiting {worker.status.queued_sequences}"
    )
