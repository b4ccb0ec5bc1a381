"""Run one decode worker as a process: its configuration comes on standard input (see worker/process.py)."""

import os
import sys

from decode_worker.policy import DECODE
from worker.process import main

if __name__ == "__main__":
    sys.exit(main(DECODE, os.environ.get("PDSERVE_LOG_LEVEL", "INFO").upper()))
