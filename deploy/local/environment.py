"""The environment of a child process."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGES = str(Path(__file__).resolve().parent.parent.parent)  # the folder that holds our packages


def child_environment() -> dict[str, str]:
    """This process's environment, with our packages first on the path.

    Children run with `python -P`, so that a folder named `engine` or `worker` where the user stands is not taken for
    ours; and unbuffered, so that their last words arrive. Threads of OpenMP that wait for work sleep: left to itself
    GNU's spins for milliseconds, on cores that other workers and the router need.
    """
    path = os.environ.get("PYTHONPATH", "")
    return {
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        **os.environ,
        "PYTHONPATH": _PACKAGES + (os.pathsep + path if path else ""),
        "PYTHONUNBUFFERED": "1",
    }
