"""The contract of tests/kv_transfer/test_transport.py, kept by the GPU transports (wires: contract_wires.py)."""

from __future__ import annotations

import sys

_suite = vars(sys.modules["kv_contract_test_transport"])  # loaded by conftest.py
globals().update({name: test for name, test in _suite.items() if name.startswith("test_")})
