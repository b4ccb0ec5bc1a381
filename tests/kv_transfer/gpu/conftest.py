"""The contract's fixtures for the GPU transports: pools as tensors, CUDA and NCCL behind stand-ins on the CPU.

`device` of a Wire says where the pools lie; on a GPU only NCCL's and the handles' stand-ins are left (contract_wires).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent


def load(path: str) -> Any:
    """A module of tests/kv_transfer under the name that the files here find it by: there is no package to import."""
    alias = f"kv_contract_{Path(path).stem}"
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(alias, FOLDER / path)
        assert spec is not None and spec.loader is not None
        sys.modules[alias] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[alias]


load("conftest.py")
load("test_transport.py")
load("gpu/socket_nccl.py")
load("transport_peer.py")
load("test_transport_processes.py")
wires = load("gpu/contract_wires.py")
load("gpu/gpu_peer.py")


def _fixture(name: str, some: list[Any]) -> object:
    params = [
        pytest.param(wire, marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
        if wire.device == "cuda"
        else wire
        for wire in some
    ]

    @pytest.fixture(params=params, ids=lambda wire: wire.name, name=name)
    def some_wire(request: pytest.FixtureRequest) -> Any:
        return request.param

    return some_wire


wire = _fixture("wire", wires.WIRES)
digest_wire = _fixture("digest_wire", [w for w in wires.WIRES if w.checks_digest])
pushed_wire = _fixture("pushed_wire", [w for w in wires.WIRES if w.pushed and w.checks_digest])
fetching_wire = _fixture("fetching_wire", [w for w in wires.WIRES if not w.pushed])
