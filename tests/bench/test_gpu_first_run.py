"""The first run on a GPU, as far as a CPU goes: parts that fail or hang do not stop it, and the split is measured."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu_first_run, gpu_serve, gpu_split
from bench.gpu_first_run import PARTS, ROOT, Outcome, Part, run_all
from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec

PYTHON = (sys.executable, "-c")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("models") / "llama"
    make_model(model, ModelSpec(arch="llama", vocab_size=300, max_position_embeddings=128))
    return model


def test_every_part_is_tried_whatever_becomes_of_the_others(tmp_path: Path) -> None:
    """Failed, hung (with a child that is ended as well), and one for which no time was left."""
    marker = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(marker)!r}).touch()"
    hangs = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    parts = [
        Part("good", (*PYTHON, "print('one fact')"), 30),
        Part("bad", (*PYTHON, "import sys; sys.exit(5)"), 30),
        Part("hangs", (*PYTHON, hangs), 1.5),
        Part("after", (*PYTHON, "print('still here')"), 30),
    ]
    outcomes = run_all(parts, tmp_path, 60)
    assert [one.how for one in outcomes] == ["ok", "failed (5)", "over its limit of 2 s", "ok"]
    assert (tmp_path / "good.log").read_text() == "one fact\n" and (tmp_path / "after.log").exists()
    assert run_all(parts, tmp_path, 0.5) == [Outcome(part.name, "not begun: no time left", 0.0) for part in parts]
    time.sleep(2)  # nothing tells that something does not happen
    assert not marker.exists()


def test_the_parts_name_what_exists() -> None:
    """Test files, folders and benchmarks."""
    for part in PARTS:
        for word in part.command:
            if word.startswith("tests/"):
                assert (ROOT / word).exists(), word
            if word.startswith("bench."):
                assert (ROOT / (word.replace(".", "/") + ".py")).exists(), word
    assert sum(part.limit_s for part in PARTS) < 2 * 600


def test_a_wrong_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything runs."""
    with pytest.raises(SystemExit):
        gpu_first_run.main(["kernals"])
    assert "'kernals' is not a part" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("main", [gpu_first_run.main, gpu_split.main])
def test_without_a_gpu_it_says_so(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line, and no failure."""
    assert main([]) == 0
    assert "no GPU here" in capsys.readouterr().err


@pytest.mark.e2e
def test_split_and_colocated_answer_alike(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers as processes on a CPU: every row has its numbers, the transports that were taken, and equal tokens."""
    arguments = [
        "--device", "cpu", "--model", str(tiny_model), "--dtype", "float32", "--transports", "auto", "gloo",
        "--requests", "5", "--concurrency", "3", "--prompt-tokens", "40", "--output-tokens", "6",
        "--kv-bytes", str(1 << 22),
    ]  # fmt: skip
    assert gpu_split.main(arguments) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith(("| colo", "| auto", "| gloo"))]
    assert [row.split(" |")[0] for row in rows] == ["| colocated", "| auto (shm)", "| gloo (gloo)"]
    assert [bool(re.search(r"\| 5/5 \|$", row)) for row in rows] == [False, True, True]


def test_serving_is_skipped_without_the_front_doors_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine that has grpcio alone."""
    monkeypatch.setattr(gpu_serve, "NEEDED", ("no_such_library",))
    assert gpu_serve.main([]) == 0
    assert "skipped, no_such_library not installed" in capsys.readouterr().out
