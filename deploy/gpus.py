"""The GPUs of this machine, asked of torch in a process of its own: the launcher never loads it.

python -m deploy.gpus        prints what `find_gpus` reads: one line of JSON
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from deploy.local.environment import child_environment
from pdserve.exit import ExitCode, StartError

PROBE_TIMEOUT_S = 120.0  # the first load of torch from a cold disk


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card, as the workers will see it under the same number."""

    name: str
    total_bytes: int
    capability: tuple[int, int]
    reads: tuple[int, ...]  # numbers of the cards whose memory it can read


@dataclass(frozen=True, slots=True)
class Gpus:
    """What torch says of this machine."""

    torch: str  # its release
    cuda: str | None  # that it was built for; None: for none
    cards: tuple[Gpu, ...]
    nccl: tuple[int, int] | None
    triton: bool  # it is installed


def find_gpus() -> Gpus:
    """Blocks for some seconds. StartError when torch cannot be asked."""
    command = [sys.executable, "-P", "-m", "deploy.gpus"]
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        )
        said = json.loads(done.stdout)
        cards = [Gpu(**one | {"capability": tuple(one["capability"]), "reads": tuple(one["reads"])})
                 for one in said.pop("cards")]  # fmt: skip
        nccl = said.pop("nccl")
        return Gpus(cards=tuple(cards), nccl=nccl and (nccl[0], nccl[1]), **said)
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or [f"exit code {error.returncode}"]
        reason = lines[-1][:300]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {PROBE_TIMEOUT_S:g} s"
    except (ValueError, TypeError, KeyError, OSError) as error:
        reason = str(error)[:300]
    raise StartError(f"--device is cuda; torch could not be asked for GPUs: {reason}", ExitCode.ENVIRONMENT)


def usable_gpus(found: Gpus) -> tuple[Gpu, ...]:
    """The cards; StartError with the one thing to do when a worker could not run on them."""
    if found.cuda is None:
        reason = f"this torch ({found.torch}) was built without CUDA: install one that has it, or give --device cpu"
    elif not found.cards:
        reason = f"torch ({found.torch}, CUDA {found.cuda}) sees no GPU (driver, CUDA_VISIBLE_DEVICES)"
    elif not found.triton:
        reason = "Triton is not installed: pip install 'pdserve[gpu]'"
    else:
        return found.cards
    raise StartError(f"--device is cuda; {reason}", ExitCode.ENVIRONMENT)


def spread(prefill: int, decode: int, count: int) -> tuple[int, ...]:
    """The card of each worker, prefill workers first.

    The roles share no card as long as there are two; each role's cards are in proportion to its workers, which take
    turns on them.
    """
    if count == 1 or prefill == 0:
        return tuple(n % count for n in range(prefill + decode))
    if prefill + decode <= count:
        return tuple(range(prefill + decode))
    for_prefill = min(max(round(count * prefill / (prefill + decode)), 1), count - 1)
    cards = [n % for_prefill for n in range(prefill)]
    return (*cards, *(for_prefill + n % (count - for_prefill) for n in range(decode)))


def _ask() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = []
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        reads = [o for o in range(count) if o == index or torch.cuda.can_device_access_peer(index, o)]
        cards.append(Gpu(facts.name, int(facts.total_memory), (facts.major, facts.minor), tuple(reads)))
    nccl = None
    if count and torch.distributed.is_available() and torch.distributed.is_nccl_available():
        major, minor, *_ = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        nccl = (int(major), int(minor))
    triton = importlib.util.find_spec("triton") is not None
    return asdict(Gpus(str(torch.__version__), torch.version.cuda, tuple(cards), nccl, triton))


if __name__ == "__main__":
    print(json.dumps(_ask()))
