"""From MODEL to a local directory: a path is taken as it is, anything else is an id of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from pdserve.exit import ExitCode, StartError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_UNWANTED = ["original/*", "onnx/*", "*.bin", "*.py"]


def model_directory(model: str) -> Path:
    """The directory of a model, fetched first when it is a hub id (HF_HOME, HF_TOKEN and HF_HUB_OFFLINE count).

    Raises StartError (exit code 4) when there is none.
    """
    path = Path(model).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(model):
        return path
    # Here, not at the top: a local model needs no hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, etag_timeout=10.0))
    except GatedRepoError:
        reason = "the hub wants you to accept its licence first (and HF_TOKEN)"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "it is neither a local directory nor a model on the hub (private ones need HF_TOKEN)"
    except LocalEntryNotFoundError:
        reason = (
            "it is no local directory, and not in the cache while the hub cannot be reached (HF_HUB_OFFLINE, HF_HOME)"
        )
    except OSError as error:
        reason = (
            f"it is no local directory, and the hub cannot be reached: {(str(error).splitlines() or ['?'])[0][:200]}"
        )
    raise StartError(f"MODEL is {model!r}; {reason}", ExitCode.MODEL)
