"""A plan of `pdserve plan -o` as settings of `pdserve serve`, and why this machine may not be able to start it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pdserve.config import ServeConfig
from pdserve.plan_format import ANY_WORKER, FORMAT, KEY
from pdserve.settings import ConfigError

_OF_A_PROFILE = "base_s"  # the first key of every profile, and no setting


def plan_settings(path: Path, text: str) -> dict[str, Any] | None:
    """What the plan sets; None where the text is no plan but plain settings. Errors: ConfigError naming the file."""
    plan = _plan(path, text)
    if plan is None:
        return None
    if plan.get(KEY) != FORMAT:
        raise ConfigError([f"{path}: {KEY} is {plan.get(KEY)!r}; this version reads {FORMAT}"])
    settings, placement = plan.get("serve"), plan.get("placement")
    if not isinstance(settings, dict) or not isinstance(placement, dict):
        raise ConfigError([f"{path}: the plan has no placement: none that was looked at meets its targets"])
    for name, pool in _pools(placement).items():
        for size in ("tp", "pp"):
            if pool.get(size) != 1:
                raise ConfigError(
                    [f"{path}: {name} workers have {size}={pool.get(size)}; workers here are whole models on one "
                     f"device: plan with --{size} 1"]
                )  # fmt: skip
    if placement.get("replicas", 1) != 1:
        raise ConfigError(
            [f"{path}: the plan has {placement['replicas']} replicas; one `pdserve serve` is one of them: "
             "plan with --affinity high"]
        )  # fmt: skip
    return settings


def check_plan(path: Path, text: str, known: Collection[str]) -> None:
    """Whether it is a plan, or an object of settings. Errors: ConfigError, one line, for anything else."""
    allowed = "it must be what `pdserve plan -o` wrote, or a JSON object of settings (prefill, decode, ...)"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: is not JSON ({str(error)[:200]}); {allowed}"]) from None
    if not isinstance(data, dict) or not data:
        raise ConfigError([f"{path}: is {text.strip()[:40]!r}; {allowed}"])
    if _OF_A_PROFILE in data:
        raise ConfigError([f"{path}: is a profile, no plan: `pdserve plan --profile {path} ...` makes one of it"])
    if KEY not in data and not any(name.replace("-", "_") in known for name in data):
        raise ConfigError([f"{path}: is no plan, it has {', '.join(map(repr, list(data)[:6]))}; {allowed}"])


def plan_problems(path: Path, config: ServeConfig) -> list[str]:
    """Why the plan is not for this machine; empty where it is, and for a mock engine, which needs no GPU."""
    try:
        plan = _plan(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        plan = None
    if plan is None or config.worker.mock is not None:
        return []
    types = sorted({str(pool.get("gpu")) for pool in _pools(plan.get("placement", {})).values()})
    if len(types) > 1:
        return [f"{path}: the plan is for {' and '.join(types)}; one `pdserve serve` has one kind of device"]
    if types not in (["this-machine"], [ANY_WORKER]) and config.worker.device == "cpu":
        return [f"{path}: the plan is for {types[0]} workers, --device is cpu; plan with --gpu this-machine"]
    return []


def _plan(path: Path, text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{") or f'"{KEY}"' not in text:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: is a plan, but no JSON: {str(error)[:200]}"]) from None
    return data if isinstance(data, dict) and KEY in data else None


def _pools(placement: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    pools = {name: placement.get(name) for name in ("prefill", "decode")}
    return {name: pool for name, pool in pools.items() if isinstance(pool, dict)}
