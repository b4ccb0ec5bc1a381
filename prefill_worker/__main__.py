"""Run one prefill worker as a process: its configuration comes on standard input (see worker/process.py)."""

import os
import sys

from prefill_worker.policy import PREFILL
from worker.process import main

if __name__ == "__main__":
    sys.exit(main(PREFILL, os.environ.get("PDSERVE_LOG_LEVEL", "INFO").upper()))
