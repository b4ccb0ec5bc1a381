"""A placement: so many workers of which kind in each pool."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.hardware.catalogue import GpuType


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal workers."""

    gpu: GpuType
    workers: int
    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if min(self.workers, self.tp, self.pp) < 1:
            raise ValueError(f"pool of {self.workers} workers, tp={self.tp}, pp={self.pp}: each at least 1")

    @property
    def gpus_per_worker(self) -> int:
        return self.tp * self.pp

    @property
    def gpus(self) -> int:
        return self.workers * self.gpus_per_worker

    @property
    def cost_per_hour(self) -> float:
        return self.gpus * self.gpu.cost_per_hour

    @property
    def power_w(self) -> float:
        return self.gpus * self.gpu.power_w

    def __str__(self) -> str:
        parallel = "".join(f" {name}{n}" for name, n in (("tp", self.tp), ("pp", self.pp)) if n > 1)
        return f"{self.workers}x{self.gpu.name}{parallel}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One placement; without a prefill pool it is colocated: decode workers compute prompts, chunk by chunk.

    With `replicas` it stands so many times, each with its own router and share of the requests; a request's KV never
    leaves its replica. (In DistServe's algorithm 2 each is in one node.)
    """

    prefill: Pool | None
    decode: Pool
    chunk_tokens: int  # token budget of one step, in both pools
    local_prefill_tokens: int = 0  # that a decode worker may lack of a prompt and compute itself
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.chunk_tokens < 1 or self.local_prefill_tokens < 0:
            raise ValueError(
                f"{self.replicas} replicas, chunk of {self.chunk_tokens}, local prefill up to "
                f"{self.local_prefill_tokens} tokens: at least 1, 1 and 0"
            )

    @property
    def pools(self) -> tuple[Pool, ...]:
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    @property
    def replica_gpus(self) -> int:
        return sum(pool.gpus for pool in self.pools)

    @property
    def gpus(self) -> int:
        return self.replicas * self.replica_gpus

    @property
    def in_one_node(self) -> bool:
        """Whether a replica may be: its GPUs are of one type, and no more than a node has."""
        one_type = len({pool.gpu.name for pool in self.pools}) == 1
        return one_type and self.replica_gpus <= self.decode.gpu.gpus_per_node

    @property
    def cost_per_hour(self) -> float:
        return self.replicas * sum(pool.cost_per_hour for pool in self.pools)

    @property
    def power_w(self) -> float:
        return self.replicas * sum(pool.power_w for pool in self.pools)

    def __str__(self) -> str:
        if self.prefill is None:
            alone = f"colocated {self.decode}"
            return f"{alone if self.replicas == 1 else f'{self.replicas} x ({alone})'}, chunk {self.chunk_tokens}"
        split = f"prefill {self.prefill} + decode {self.decode}"
        split = split if self.replicas == 1 else f"{self.replicas} x ({split})"
        local = f", up to {self.local_prefill_tokens} tokens of a prompt on decode" if self.local_prefill_tokens else ""
        return f"{split}, chunk {self.chunk_tokens}{local}"


def within(candidate: Candidate, other: Candidate) -> bool:
    """Whether `other`, of the same shape, has as many workers and replicas or more."""
    return (
        candidate.replicas <= other.replicas
        and candidate.decode.workers <= other.decode.workers
        and (candidate.prefill is None or other.prefill is None or candidate.prefill.workers <= other.prefill.workers)
    )


def shape_of(candidate: Candidate) -> tuple[object, ...]:
    """All but the numbers of workers and replicas."""
    pools = tuple(replace(pool, workers=1) for pool in candidate.pools)
    return (candidate.prefill is None, pools, candidate.chunk_tokens, candidate.local_prefill_tokens)
