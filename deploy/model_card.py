"""What the front doors must know of a model, from its config.json and generation_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.checkpoint import MAX_CONFIG_BYTES, Checkpoint
from deploy.safetensors_headers import BadCheckpoint, read_json
from router.interface import GenerationDefaults, ModelCard


def read_model_card(checkpoint: Checkpoint, served_name: str, max_model_len: int) -> ModelCard:
    """Raises BadCheckpoint for a file that makes no sense."""
    config = read_json(checkpoint.path / "config.json", MAX_CONFIG_BYTES)
    file = checkpoint.path / "generation_config.json"
    generation: Any = read_json(file, MAX_CONFIG_BYTES) if file.exists() else {}
    if not isinstance(generation, dict):
        raise BadCheckpoint(f"{file}: is not a JSON object")
    text = config.get("text_config", config)
    eos = generation.get("eos_token_id")
    if eos is None:
        eos, file = text.get("eos_token_id", config.get("eos_token_id")), checkpoint.path / "config.json"
    return ModelCard(
        served_name=served_name,
        max_model_len=max_model_len,
        vocab_size=checkpoint.vocab_size,
        eos_token_ids=_token_ids(file, eos, checkpoint.vocab_size),
        generation_defaults=_defaults(checkpoint.path / "generation_config.json", generation),
    )


def _token_ids(file: Path, value: Any, vocab_size: int) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(one) is int and 0 <= one < vocab_size for one in ids):
        raise BadCheckpoint(f"{file}: eos_token_id is {value!r:.60}; ids must be from 0 to {vocab_size - 1}")
    return tuple(ids)


def _defaults(file: Path, generation: dict[str, Any]) -> GenerationDefaults:
    """Sampling defaults; a checkpoint that does not sample has none."""
    if generation.get("do_sample") is False:
        generation = {name: value for name, value in generation.items() if name == "max_new_tokens"}

    def number(name: str, low: float, high: float) -> float | None:
        value = generation.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadCheckpoint(f"{file}: {name} is {value!r:.60}; it must be a number from {low:g} to {high:g}")
        return value

    top_k, max_tokens = number("top_k", 0, 1 << 31), number("max_new_tokens", 1, 1 << 31)
    return GenerationDefaults(
        temperature=number("temperature", 0.0, 100.0),
        top_p=number("top_p", 0.0, 1.0),
        top_k=None if top_k is None else int(top_k),
        min_p=number("min_p", 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 0.0, 100.0),
        max_tokens=None if max_tokens is None else int(max_tokens),
    )
