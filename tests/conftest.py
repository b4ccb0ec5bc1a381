"""For every test: Ctrl-C as in a terminal, one thread of torch per process, and who may run beside whom."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

# A runner started in the background ignores SIGINT, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two processes run tests (`make test`) on machines of two cores: neither shall take both. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CLUSTERS = (
    "tests/e2e/",
    "tests/bench/test_gpu_first_run.py",
    "tests/bench/test_profiler.py",
    "tests/bench/test_served_",
    "tests/deploy/test_doctor_links.py",
    "tests/deploy/test_local_cluster.py",
    "tests/deploy/test_observability_dashboards.py",
    "tests/deploy/test_serve_process.py",
    "tests/kv_transfer/test_transport_processes.py",
)
"""Tests that start clusters, judge by time or look at what is left on the machine: one process runs all of these, one
after another, while others run the rest file by file."""


def scope_of(node_id: str) -> str:
    """What is run by one process, in order: all clusters, or one file, whose fixtures are then made once."""
    path = node_id.partition("::")[0]
    return "clusters" if path.startswith(CLUSTERS) else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes clusters come first: they take longest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: scope_of(item.nodeid) != "clusters")


@pytest.hookimpl(optionalhook=True)  # tests run without pytest-xdist too
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Scopes as above, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Scopes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False
    return Scopes(config, log)
