"""--device cuda: what is asked of torch, which card each worker gets, what is refused and in which words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deploy import gpus, resolve
from deploy.gpus import Gpu, Gpus, find_gpus, spread, usable_gpus
from deploy.local.environment import worker_environment
from pdserve.config import ServeConfig, WorkerConfig, WorkerStart
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError

H100 = Gpu("NVIDIA H100", 80 << 30, (9, 0), (0, 1))
TWO = Gpus("2.11.0", "13.0", (H100, H100), (2, 27), True)
ONE = replace(TWO, cards=(replace(H100, reads=(0,)),))
Resolve = Callable[..., Any]


@pytest.fixture
def resolved(model_files: Any, monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """`resolve` of a cluster on the GPUs that are given."""

    def run(found: Gpus, prefill: int = 1, decode: int = 1, ray: str | None = None, **worker: Any) -> Any:
        monkeypatch.setattr(resolve, "find_gpus", lambda: found)
        config = WorkerConfig(device="cuda", **worker)
        return resolve.resolve(
            ServeConfig(model=str(model_files.path), prefill=prefill, decode=decode, ray=ray, worker=config)
        )

    return run


@pytest.mark.parametrize(
    ("prefill", "decode", "count", "expected"),
    [
        (1, 1, 1, (0, 0)),
        (1, 1, 2, (0, 1)),
        (1, 1, 8, (0, 1)),
        (2, 2, 2, (0, 0, 1, 1)),
        (1, 3, 2, (0, 1, 1, 1)),
        (3, 1, 2, (0, 0, 0, 1)),
        (2, 6, 4, (0, 0, 1, 2, 3, 1, 2, 3)),
        (0, 3, 2, (0, 1, 0)),
        (2, 1, 1, (0, 0, 0)),
    ],
)
def test_workers_are_spread_over_the_cards(prefill: int, decode: int, count: int, expected: tuple[int, ...]) -> None:
    """One each where there are enough."""
    assert spread(prefill, decode, count) == expected


def test_roles_share_no_card_where_there_are_two() -> None:
    """And every card has a worker where there are as many workers, evenly within a role."""
    for count in range(2, 9):
        for prefill in range(1, 9):
            for decode in range(1, 9):
                cards = spread(prefill, decode, count)
                ours, theirs = Counter(cards[:prefill]), Counter(cards[prefill:])
                assert len(cards) == prefill + decode and not set(ours) & set(theirs)
                assert set(cards) <= set(range(count))
                for one in (ours, theirs):
                    assert max(one.values()) - min(one.values()) <= 1


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (replace(TWO, cuda=None, cards=()), r"this torch \(2\.11\.0\) was built without CUDA"),
        (replace(TWO, cards=()), r"torch \(2\.11\.0, CUDA 13\.0\) sees no GPU \(driver, CUDA_VISIBLE_DEVICES\)"),
        (replace(TWO, triton=False), r"Triton is not installed: pip install 'pdserve\[gpu\]'"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(found: Gpus, said: str) -> None:
    """One line, exit code 3."""
    with pytest.raises(StartError, match=f"^--device is cuda; {said}") as raised:
        usable_gpus(found)
    assert raised.value.exit_code is ExitCode.ENVIRONMENT
    assert usable_gpus(TWO) == TWO.cards


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    """Whatever this machine has, its answer is read."""
    found = find_gpus()
    assert found.torch and all(card.total_bytes > 0 for card in found.cards)


def test_a_torch_that_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line is; a wrong answer is none."""
    for code, said in (("raise OSError('libcudart is broken')", "libcudart is broken"), ("print('hello')", "")):
        monkeypatch.setattr(gpus.sys, "argv", [])
        run = gpus.subprocess.run
        monkeypatch.setattr(
            gpus.subprocess, "run", lambda command, code=code, run=run, **kw: run([command[0], "-c", code], **kw)
        )
        with pytest.raises(StartError, match=f"^--device is cuda; torch could not be asked for GPUs: .*{said}"):
            find_gpus()
        monkeypatch.undo()


def test_workers_that_share_a_card_divide_it_and_know(resolved: Resolve) -> None:
    """On one card each has half; on two its own, whole."""
    shared = resolved(ONE).starts("secret")
    assert [one.device for one in shared] == ["cuda:0", "cuda:0"] and all(one.shares_gpu for one in shared)
    assert [one.config.gpu_memory_utilization for one in shared] == [0.45, 0.45]
    apart = resolved(TWO).starts("secret")
    assert [one.device for one in apart] == ["cuda:0", "cuda:1"] and not any(one.shares_gpu for one in apart)
    assert [one.config.gpu_memory_utilization for one in apart] == [0.9, 0.9]
    assert all(one.config.kv_bytes is None for one in apart)
    assert [WorkerStart.from_json(one.to_json()) for one in shared] == shared


def test_dtype_is_bfloat16_but_on_older_cards(resolved: Resolve) -> None:
    """float16 there, and where the checkpoint stores it; asking for bfloat16 there is refused with the card's name."""
    old = replace(ONE, cards=(Gpu("Tesla V100", 16 << 30, (7, 0), (0,)),))
    assert resolved(ONE).worker.dtype == "bfloat16"
    assert resolved(old).worker.dtype == "float16"
    assert resolved(old, dtype="float32").worker.dtype == "float32"
    with pytest.raises(ConfigError, match=r"Tesla V100 \(compute capability 7\.0\) has none: give float16"):
        resolved(old, dtype="bfloat16")


def test_a_forced_transport_that_cannot_work_is_refused_at_start(resolved: Resolve) -> None:
    """By what torch said of NCCL and of which card reads which; without prefill workers nothing moves."""
    deaf = replace(TWO, cards=(replace(H100, reads=(0,)), replace(H100, reads=(1,))))
    for found, name, said in (
        (ONE, "nccl", "both workers are on one GPU, which NCCL 2.27 refuses (from 2.30 on): give auto"),
        (replace(TWO, nccl=None), "nccl", "torch has no NCCL on one side: give auto"),
        (deaf, "cuda_ipc", "cuda:1 cannot read the memory of cuda:0, or does not see it: give auto"),
    ):
        with pytest.raises(StartError) as raised:
            resolved(found, kv_transport=name)
        assert raised.value.message == f"--kv-transport is {name}; {said}"
        assert raised.value.exit_code is ExitCode.ENVIRONMENT
        resolved(found, prefill=0, kv_transport=name)
    for found, name in ((TWO, "nccl"), (TWO, "cuda_ipc"), (ONE, "cuda_ipc"), (deaf, "staged"), (deaf, "auto")):
        assert resolved(found, kv_transport=name).worker.kv_transport == name
    for name in ("shm", "gloo"):
        with pytest.raises(ConfigError, match=f"--kv-transport is {name}; with --device cuda it must be auto or one"):
            resolved(TWO, kv_transport=name)


def test_ray_places_workers_by_itself(resolved: Resolve) -> None:
    """This machine's GPUs are not asked for: the workers' machines have them."""
    starts = resolved(replace(TWO, cards=()), ray="local").starts("secret")
    assert [one.device for one in starts] == ["cuda:0", "cuda:0"] and not any(one.shares_gpu for one in starts)


def test_a_worker_with_a_gpu_finds_nccls_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch is loaded; two ranks on one card where it is shared; GPUs counted alike; what the user set wins."""
    for name in ("TORCH_NCCL_ENABLE_MONITORING", "NCCL_MULTI_RANK_GPU_ENABLE", "NCCL_MAX_CTAS", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)

    def environment(device: str, shares_gpu: bool = False) -> dict[str, str]:
        start = WorkerStart("d", "decode", "", device, "s", "127.0.0.1:0", WorkerConfig(), shares_gpu=shares_gpu)
        return worker_environment(start)

    assert not any("NCCL" in name for name in environment("cpu"))
    alone, shared = environment("cuda:1"), environment("cuda:1", shares_gpu=True)
    assert alone["TORCH_NCCL_ENABLE_MONITORING"] == "0" and alone["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert json.dumps(shared) != json.dumps(alone) and shared["NCCL_MULTI_RANK_GPU_ENABLE"] == "1"
    monkeypatch.setenv("NCCL_MAX_CTAS", "2")
    assert environment("cuda:0")["NCCL_MAX_CTAS"] == "2"
