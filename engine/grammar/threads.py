"""Threads for llguidance, whose recursion may go deeper than the stack that a system gives by default."""

from __future__ import annotations

import threading
from collections.abc import Callable

STACK_BYTES = 16 << 20  # eight times what a constraint was tried with (pdserve/grammar_trial.py)


def start_thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    """A daemon: a native call that does not return must not keep the process."""
    before = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    return thread
