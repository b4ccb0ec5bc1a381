"""The two models that benchmarks here speak of, with random weights: a small one, and the shape of a real one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec

REFERENCE_MODELS = {
    # 27.8 million weights: 56 MB in bfloat16, which a large cache may hold
    "tiny": ModelSpec(
        arch="llama",
        num_layers=8,
        hidden_size=512,
        intermediate_size=1408,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        vocab_size=8192,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
    # 449 million: Qwen3-0.6B with a smaller vocabulary
    "small": ModelSpec(
        arch="qwen3",
        num_layers=28,
        hidden_size=1024,
        intermediate_size=3072,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=8192,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
}


@contextmanager
def model_directory(name_or_path: str) -> Iterator[Path]:
    """The directory of a reference model, made for the while; any other name is a directory that exists.

    Raises SystemExit, with what there is, where it does not.
    """
    spec = REFERENCE_MODELS.get(name_or_path)
    if spec is None:
        if not Path(name_or_path, "config.json").is_file():
            known = ", ".join(REFERENCE_MODELS)
            raise SystemExit(f"bench: {name_or_path!r} is neither {known} nor a directory with a config.json")
        yield Path(name_or_path)
        return
    with tempfile.TemporaryDirectory() as directory:
        make_model(Path(directory), spec)
        yield Path(directory)
