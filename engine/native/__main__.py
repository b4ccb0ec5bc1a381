"""`python -m engine.native [COMPILER]`: build the native kernels for this machine."""

import subprocess
import sys

from engine.native.build import build

if __name__ == "__main__":
    try:
        print(build(*sys.argv[1:2]))
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        # The engine runs without them, slower, and says so in its log.
        print(f"pdserve: the native kernels were not built: {error}", file=sys.stderr)
        sys.exit(1)
