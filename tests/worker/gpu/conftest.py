"""Triton as tests/engine/gpu uses it, and a card that is none."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec


def _engine_conftest() -> Any:
    """By its path: there is no package to import. Under one name, because it changes Triton when it is loaded."""
    name = "engine_gpu_conftest"
    if name not in sys.modules:
        path = Path(__file__).resolve().parents[2] / "engine" / "gpu" / "conftest.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


kernel_device = _engine_conftest().kernel_device


class FakeCard:
    """The CPU as a card: memory sizes as it is told, pools that are host tensors."""

    def __init__(self, device: torch.device, total_bytes: int = 1 << 34, taken_bytes: int = 1 << 30) -> None:
        self.device = torch.device("cpu")
        self.total_bytes, self.taken_bytes, self.free = total_bytes, taken_bytes, total_bytes
        self.gpu_uuid = f"GPU-{device.index}"
        self.nccl: tuple[int, int] | None = None
        self.given_back = 0

    def free_bytes(self) -> int:
        return self.free

    def most_taken_bytes(self) -> int:
        return self.taken_bytes

    def give_back(self) -> None:
        self.given_back += 1

    def reaches(self, uuid: str) -> bool:
        return uuid == self.gpu_uuid


@pytest.fixture
def fake_card(kernel_device: torch.device) -> type[FakeCard]:
    """Skips where Triton is missing, and on a machine with a GPU: kernels are compiled there, not interpreted."""
    if kernel_device.type != "cpu":
        pytest.skip("there is a GPU: the tests marked gpu use it")
    return FakeCard


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model of a family."""
    made: dict[str, Path] = {}

    def make(arch: str) -> Path:
        if arch not in made:
            made[arch] = tmp_path_factory.mktemp("models") / arch
            make_model(made[arch], ModelSpec(arch=arch, vocab_size=300, max_position_embeddings=128))
        return made[arch]

    return make
