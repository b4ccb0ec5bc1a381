"""Becomes another program that the kernel kills when its parent is gone: `python -m ... PARENT_PID PROGRAM ARG...`.

The wish outlives exec. It is made here, in the child, and not between fork and exec in the launcher, where threads of
gRPC may hold locks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    """Ask for SIGKILL at the parent's death, look whether it died meanwhile, exec."""
    parent_pid, program = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() == parent_pid:
        os.execv(program[0], program)


if __name__ == "__main__":
    main()
