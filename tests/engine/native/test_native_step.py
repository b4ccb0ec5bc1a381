"""The native step: who gets it, that threads change nothing, and that a wrong one is not used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import kernels as kernels_module
from engine.model import load_model
from engine.native import build as build_module
from engine.native import decoder_plan, library


@pytest.fixture(scope="module")
def _built() -> None:
    """Other than `make env`, tests may wait for the compiler."""
    try:
        build_module.build()
    except RuntimeError as error:
        pytest.skip(f"the native kernels cannot be built here: {error}")


needs_library = pytest.mark.usefixtures("_built")


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma2", "gemma3", "olmo2"])
def test_families_that_are_listed_are_computed_by_it(arch: str, dtype: str, tiny_dir: Any) -> None:
    """Not by a quiet fall back."""
    assert load_model(tiny_dir(arch), dtype=dtype).kernels.name == "native step"


@needs_library
@pytest.mark.parametrize("arch", ["gpt2", "mixtral", "deepseek_v3"])
def test_other_families_have_packed_linears(arch: str, load_tiny: Any) -> None:
    """Conv1D, a mixture, keys and values of unlike sizes."""
    assert load_tiny(arch).kernels.name == "native kernels"


@needs_library
@pytest.mark.parametrize(("arch", "fields"), [("llama", {}), ("gemma2", {"sliding_window": 21}), ("gpt2", {})])
def test_threads_change_no_bit(
    arch: str, fields: dict[str, Any], load_tiny: Any, tiny_dir: Any, driver: Any, random_prompt: Any
) -> None:
    """Three threads on whatever cores there are, mixed steps."""
    runs = []
    for model in (load_tiny(arch, **fields), load_model(tiny_dir(arch, **fields), num_threads=3)):
        running = driver(model, seed=4)
        sequence = running.add(random_prompt(60), 8, chunk=25)
        running.add_neighbours(6, model.vocab_size)
        running.run()
        runs.append((sequence.outputs, torch.stack(sequence.logits)))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


@needs_library
def test_bfloat16_gives_the_oracle_s_choices_up_to_rounding(
    tiny_dir: Any, driver: Any, oracle_logits: Any, random_prompt: Any
) -> None:
    """Prompt, chunks and single tokens go by different kernels: all stay close to float32."""
    model = load_model(tiny_dir("qwen3"), dtype="bfloat16")
    running = driver(model)
    running.add_neighbours(5, model.vocab_size)
    sequence = running.add(random_prompt(100), 12, chunk=64)
    running.run()
    expected = oracle_logits(sequence.tokens[:-1], "qwen3")[99:]
    found = torch.stack(sequence.logits)
    assert float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) < 0.05


@needs_library
def test_a_step_that_gives_other_numbers_is_not_used(
    tiny_dir: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, oracle_logits: Any
) -> None:
    """A family read wrongly (its norms, here) is found out at load; the model is then computed by torch, rightly."""
    monkeypatch.setitem(decoder_plan._FAMILIES, "llama", decoder_plan._Family(weight_plus=1.0))
    with caplog.at_level(logging.WARNING):
        model = load_model(tiny_dir("llama"))
    assert model.kernels.name == "torch"
    assert "logits differ by" in caplog.text


def test_without_a_library_torch_computes(
    tiny_dir: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The log says that it will be slow, and what to do."""
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "absent.so")
    with caplog.at_level(logging.WARNING):
        model = load_model(tiny_dir("llama"))
    assert model.kernels.name == "torch"
    assert "python -m engine.native" in caplog.text


@needs_library
def test_a_damaged_library_is_not_loaded_and_is_built_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Cut short it would kill the process that maps it; the log says what to do, and that then helps."""
    whole = build_module.library_path()
    damaged = tmp_path / whole.name
    damaged.write_bytes(whole.read_bytes()[:100_000])
    damaged.with_suffix(".sha256").write_text(whole.with_suffix(".sha256").read_text())
    monkeypatch.setattr(library, "library_path", lambda: damaged)
    with caplog.at_level(logging.WARNING):
        assert kernels_module.load_library() is None
    assert "the native kernels are damaged (python -m engine.native)" in caplog.text
    assert not build_module.is_whole(damaged)
    damaged.write_bytes(whole.read_bytes())
    loaded = kernels_module.load_library()
    assert loaded is not None
    loaded.close()


def test_a_library_that_does_not_load_is_no_disaster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Whole, but not for this system."""
    (tmp_path / "broken.so").write_bytes(b"\x7fELF nonsense")
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "broken.so")
    monkeypatch.setattr(library, "is_whole", lambda path: True)
    with caplog.at_level(logging.WARNING):
        assert kernels_module.load_library() is None
    assert "cannot be loaded" in caplog.text


def test_building_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a compiler that fails is quoted."""
    monkeypatch.setattr(build_module, "library_path", lambda: tmp_path / "new.so")
    monkeypatch.setattr(build_module.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler found"):
        build_module.build()
    monkeypatch.setattr(build_module, "BUILT", tmp_path)
    with pytest.raises(RuntimeError, match="false -std"):
        build_module.build("false")


def test_kernels_must_be_one_of_the_choices(tiny_dir: Any) -> None:
    """The error names what there is."""
    with pytest.raises(ValueError, match="kernels is 'cuda'; it must be one of auto, torch"):
        load_model(tiny_dir("llama"), kernels="cuda")
