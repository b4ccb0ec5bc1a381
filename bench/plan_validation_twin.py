"""The clusters of a validation: what `serve` is given, and their twins in the simulator."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

from placement.latency.fitted_profile import Profile
from placement.simulator.cluster import ClusterSpec, Delays, LinkSpec, WorkerSpec
from scheduling.batching import SchedulerConfig
from scheduling.routing import Role

BLOCK_SIZE = 16
MOCK_BLOCK_BYTES = 64 * BLOCK_SIZE
GENERATION_BYTES = 8  # beside each block


@dataclass(frozen=True, slots=True)
class Limits:
    """Of every worker; given to `serve` and to the simulator."""

    chunk_tokens: int
    max_num_seqs: int
    max_model_len: int
    kv_bytes: int

    def flags(self) -> list[str]:
        values = {
            "--max-num-batched-tokens": self.chunk_tokens, "--max-num-seqs": self.max_num_seqs,
            "--max-model-len": self.max_model_len, "--kv-bytes": self.kv_bytes, "--block-size": BLOCK_SIZE,
        }  # fmt: skip
        return [word for name, value in values.items() for word in (name, str(value))]


@dataclass(frozen=True, slots=True)
class Placement:
    """So many workers of each role."""

    prefill: int
    decode: int

    @classmethod
    def parse(cls, text: str) -> Placement:
        prefill, plus, decode = text.partition("+")
        if not plus or not prefill.isdecimal() or not decode.isdecimal() or int(decode) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} must be PREFILL+DECODE workers, like 2+1 or 0+1")
        return cls(int(prefill), int(decode))

    def __str__(self) -> str:
        return f"{self.prefill}P+{self.decode}D" if self.prefill else f"{self.decode} colocated"

    def flags(self) -> list[str]:
        return ["--prefill", str(self.prefill), "--decode", str(self.decode)]


def cluster_of(placement: Placement, profile: Profile, limits: Limits, mock: bool) -> ClusterSpec:
    """The simulated twin of what `serve` starts."""
    block_bytes = MOCK_BLOCK_BYTES
    if not mock and profile.subject is not None:
        block_bytes = profile.subject.kv_bytes_per_token * BLOCK_SIZE
    config = SchedulerConfig(
        max_model_len=limits.max_model_len, max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.chunk_tokens,
    )  # fmt: skip
    times = profile.step_times if placement.prefill else profile.colocated_step_times
    if mock:
        times = profile.mock_step_times
    num_blocks = limits.kv_bytes // (block_bytes + GENERATION_BYTES)
    prior = profile.linear.coefficients  # the warm-up has taught the router something like it
    roles = [Role.PREFILL] * placement.prefill + [Role.DECODE] * placement.decode
    workers = tuple(
        WorkerSpec(f"{role.value}-{i}", role, config, num_blocks, BLOCK_SIZE, times, False, prior=prior)
        for i, role in enumerate(roles)
    )
    delays = profile.delays if placement.prefill else profile.colocated_delays
    found = ClusterSpec(workers, block_bytes, profile.link or LinkSpec(1e10), delays or profile.delays or Delays())
    if mock and profile.mock is not None:
        return replace(found, jitter=profile.mock.jitter())
    if mock or profile.served is None:
        return found
    served = profile.served
    return replace(found, slowdown=served.slowdown, warming=served.warming, jitter=served.jitter)


def planned(path: Path) -> tuple[Placement, int | None]:
    """The placement of a plan file, and its chunk. Errors: OSError; ValueError where it has none that runs here."""
    given = json.loads(path.read_text(encoding="utf-8"))
    serve = given.get("serve", given) if isinstance(given, dict) else None
    if not isinstance(serve, dict) or not {"prefill", "decode"} <= set(serve):
        raise ValueError(f"{path}: has no prefill and decode workers to start; it must be of `pdserve plan -o`")
    placement = given.get("placement") or {}
    pools = [pool for name in ("prefill", "decode") if (pool := placement.get(name))]
    if any(pool["tp"] != 1 or pool["pp"] != 1 for pool in pools) or placement.get("replicas", 1) != 1:
        raise ValueError(
            f"{path}: is {placement.get('placement')}; workers here are whole models in one cluster: plan with --tp 1 "
            "--pp 1 --affinity high"
        )
    return Placement(int(serve["prefill"]), int(serve["decode"])), serve.get("max_num_batched_tokens")
