"""The GPUs, and what of the software beside them is there."""

from __future__ import annotations

import itertools
import os
import re
import subprocess

from deploy.doctor.finding import Finding, fail, ok, warn
from deploy.gpus import Gpus, find_gpus
from pdserve.exit import StartError

AREA = "GPUs"
NVIDIA_SMI_TIMEOUT_S = 20.0


def check_gpus(wanted: bool) -> list[Finding]:
    """`wanted`: --device cuda. Without it a machine that has none is fine, and torch is not asked."""
    if not wanted and not any(re.fullmatch(r"nvidia\d+", name) for name in os.listdir("/dev")):
        return [ok(AREA, "GPUs", "none: CPU only")]
    try:
        found = find_gpus()
    except StartError as error:
        return [_bad(wanted, "torch", error.message, "does `python -c 'import torch'` work?")]
    return [*judge_gpus(found, wanted), _driver()] if found.cards else judge_gpus(found, wanted)


def judge_gpus(found: Gpus, wanted: bool) -> list[Finding]:
    """What torch says of them."""
    if found.cuda is None:
        hint = "install a torch that was built with CUDA, or give --device cpu"
        return [_bad(wanted, "torch", f"{found.torch} was built without CUDA", hint)]
    if not found.cards:
        hint = "is the driver loaded (nvidia-smi), is CUDA_VISIBLE_DEVICES empty, was the container given GPUs?"
        return [_bad(wanted, "GPUs", f"torch {found.torch} (CUDA {found.cuda}) sees none", hint)]
    findings = [
        ok(AREA, f"cuda:{n}", f"{card.name}, {card.total_bytes / 2**30:.0f} GiB, capability "
           f"{card.capability[0]}.{card.capability[1]}")
        for n, card in enumerate(found.cards)
    ]  # fmt: skip
    findings.append(_triton(found, wanted))
    if found.nccl is None:
        findings.append(warn(AREA, "NCCL", "not in this torch", "--kv-transport nccl is not available"))
    else:
        findings.append(ok(AREA, "NCCL", f"{found.nccl[0]}.{found.nccl[1]}"))
    return [*findings, *_peer_access(found)]


def _triton(found: Gpus, wanted: bool) -> Finding:
    if found.triton:
        return ok(AREA, "Triton", "installed")
    return _bad(wanted, "Triton", "not installed", "pip install 'pdserve[gpu]'")


def _peer_access(found: Gpus) -> list[Finding]:
    """Whether every card reads every other's memory: without it KV takes the way over NCCL or the host."""
    pairs = list(itertools.permutations(range(len(found.cards)), 2))
    if not pairs:
        return []
    missing = [f"{a}->{b}" for a, b in pairs if b not in found.cards[a].reads]
    if missing:
        hint = "KV between these moves over nccl or staged, not cuda_ipc (nvidia-smi topo -m)"
        return [warn(AREA, "peer access", f"missing: {', '.join(missing)}", hint)]
    return [ok(AREA, "peer access", f"all {len(pairs)} directions")]


def _driver() -> Finding:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return warn(AREA, "driver", f"nvidia-smi does not answer: {error}", "it is not needed to serve")
    versions = sorted(set(done.stdout.split()))
    return ok(AREA, "driver", ", ".join(versions) or "unknown")


def _bad(wanted: bool, check: str, found: str, hint: str) -> Finding:
    return (fail if wanted else warn)(AREA, check, found, hint)
