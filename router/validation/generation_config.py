"""The defaults that a checkpoint asks for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from router.interface import GenerationDefaults

MAX_FILE_BYTES = 1 << 20


def load_generation_defaults(directory: Path) -> GenerationDefaults:
    """From generation_config.json; no file, no defaults.

    Values that no request could ask for are left out: an old file must not make every request fail.
    Raises ValueError naming the file when it is not a JSON object.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults()
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, limit {MAX_FILE_BYTES:,}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return GenerationDefaults(
        temperature=_number(found, "temperature", 0, 100),
        top_p=_number(found, "top_p", 1e-9, 1),
        top_k=_integer(found, "top_k", -1),
        min_p=_number(found, "min_p", 0, 1),
        repetition_penalty=_number(found, "repetition_penalty", 1e-9, 2),
        max_tokens=_integer(found, "max_new_tokens", 1),
    )


def _number(found: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and low <= value <= high else None


def _integer(found: dict[str, Any], name: str, low: int) -> int | None:
    value = found.get(name)
    return value if type(value) is int and value >= low else None
