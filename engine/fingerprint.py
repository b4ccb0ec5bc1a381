"""A name for a model's configuration and weights, cheap enough to make at every load."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

SAMPLES = 512  # numbers per tensor
NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def model_fingerprint(module: Any) -> str:
    """64 hexadecimal digits over the configuration and, of every weight, its name, shape, dtype and 512 samples.

    Two checkpoints of one shape differ (small tensors are read whole); two files of the same weights do not.
    """
    digest = hashlib.sha256()
    config = {key: value for key, value in module.config.to_dict().items() if key not in NOT_THE_MODEL}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(_samples(weight))
    return digest.hexdigest()


def _samples(weight: Tensor) -> bytes:
    """Numbers at even distances, first and last among them."""
    flat = weight.detach().flatten()
    count = min(SAMPLES, flat.numel())
    if count == 0:
        return b""
    at = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(1, count - 1)
    return flat[at].cpu().view(torch.uint8).numpy().tobytes()
