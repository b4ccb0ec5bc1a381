"""Whether a tokenizer.json loads and encodes in reasonable time: tried in a process of its own, which can be killed.

A pre-tokenizer's pattern may backtrack for hours on a few kilobytes, in native code that nothing interrupts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deploy.local.environment import child_environment

LOAD_TIMEOUT_S = 60.0
ENCODE_TIMEOUT_S = 5.0
_RUN = 4096
PROBES = tuple(unit * (_RUN // len(unit)) + "!" for unit in ("a", " ", "1", "\n", "aA", "a ", "a1", "_", "é"))
"""Long runs that end in something else: what nested repetition fails on only after trying every way to split it."""


def probe(file: Path) -> str | None:
    """Why a tokenizer cannot be used, in one line; None when it can. Takes about as long as loading it once."""
    command = [sys.executable, "-P", "-m", "deploy.tokenizer_probe", str(file)]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, env=child_environment(), stdin=null, stdout=null, stderr=pipe, text=True)
    with process:
        try:
            _, errors = process.communicate(timeout=LOAD_TIMEOUT_S + ENCODE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"does not load and encode {_RUN:,} characters within {LOAD_TIMEOUT_S + ENCODE_TIMEOUT_S:g} s"
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"encoding {_RUN:,} characters took more than {ENCODE_TIMEOUT_S:g} s (a pattern that backtracks?)"
    return (errors.strip().splitlines() or ["does not load, for an unknown reason"])[-1][:200]


def main() -> None:
    """The child: load, arm the alarm, encode. SIGALRM's default action ends it wherever it is."""
    import signal

    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
    except Exception as error:  # the library raises bare Exception
        raise SystemExit(f"does not load: {error}") from None
    signal.setitimer(signal.ITIMER_REAL, ENCODE_TIMEOUT_S)
    for text in PROBES:
        try:
            tokenizer.encode(text)
        except BaseException as error:  # a panic of the library is no Exception
            raise SystemExit(f"cannot encode {_RUN:,} characters like {text[:4]!r}: {error}") from None


if __name__ == "__main__":
    main()
