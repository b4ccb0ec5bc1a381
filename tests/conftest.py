"""For every test: Ctrl-C means what it means in a terminal."""

from __future__ import annotations

import signal

# A runner started in the background ignores SIGINT, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
