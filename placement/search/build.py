"""From a candidate to a cluster that can be simulated: step times, KV memory, links, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pdserve.byte_sizes import size_in_words
from placement.hardware.catalogue import GpuType
from placement.latency.roofline import Roofline
from placement.latency.shape import ModelShape
from placement.search.candidate import Candidate, Pool
from placement.simulator.cluster import (
    ClusterSpec,
    Delays,
    Jitter,
    LinkSpec,
    Slowdown,
    StepTimes,
    Warming,
    WorkerSpec,
)
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients
from scheduling.routing import Role, RoutingConfig

MakeStepTimes = Callable[[GpuType, int, int], StepTimes]
"""(GPU, tp, pp) -> step times; profiles measured on that GPU stand in for the roofline here."""


_DELAYS = Delays(front_s=1e-3, message_s=5e-4, wake_s=1e-4)


class DoesNotFit(ValueError):
    """A worker's memory does not hold the weights and the longest request."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the workers of every candidate are run."""

    model: ModelShape
    max_model_len: int
    block_size: int = 16
    max_num_seqs: int = 256
    delays: Delays = _DELAYS
    colocated_delays: Delays | None = None  # where no prompt leaves its worker; None: the same
    step_times: MakeStepTimes | None = None  # None: the roofline
    colocated_step_times: MakeStepTimes | None = None  # of workers that do both; None: the same
    prefix_caching: bool = True
    kv_bytes: float | None = None  # of each worker; None: what its GPUs leave
    link: LinkSpec | None = None  # None: NVLink where both pools share a node, else the network
    slowdown: Slowdown | None = None  # of workers that are all on one machine; None: each has its own hardware
    warming: Warming | None = None  # of decodes
    jitter: Jitter | None = None

    @property
    def block_bytes(self) -> int:
        return int(self.block_size * self.model.kv_bytes_per_token)

    def times(self, pool: Pool, *, colocated: bool = False) -> StepTimes:
        """Step times of one worker of a pool. Errors: DoesNotFit."""
        make = self.colocated_step_times if colocated and self.colocated_step_times is not None else self.step_times
        if make is not None:
            return make(pool.gpu, pool.tp, pool.pp)
        return Roofline(self.model, pool.gpu, pool.tp, pool.pp)

    def blocks(self, pool: Pool) -> int:
        """KV blocks of one lane of a worker. Errors: DoesNotFit."""
        kv_bytes = self.kv_bytes
        if kv_bytes is None:
            kv_bytes = Roofline(self.model, pool.gpu, pool.tp, pool.pp).kv_bytes
        blocks = int(kv_bytes / pool.pp // self.block_bytes)
        needed = -(-self.max_model_len // self.block_size)
        if blocks < needed:
            raise DoesNotFit(
                f"{pool}: {size_in_words(max(kv_bytes, 0.0) / pool.pp)} of KV a lane, one request of "
                f"{self.max_model_len:,} tokens needs {size_in_words(needed * self.block_bytes)}"
            )
        return blocks

    def scheduler(self, chunk_tokens: int) -> SchedulerConfig:
        return SchedulerConfig(
            max_model_len=self.max_model_len,
            max_num_seqs=min(self.max_num_seqs, chunk_tokens),
            max_num_batched_tokens=chunk_tokens,
            max_queued_sequences=1 << 30,
        )


def link_of(candidate: Candidate, serving: Serving) -> LinkSpec:
    """Of one lane's port: its worker's share of what joins the pools, divided by the worker's lanes."""
    if serving.link is not None or candidate.prefill is None:
        return serving.link or LinkSpec(1e12)
    near = candidate.in_one_node
    rates = []
    for pool in candidate.pools:
        one = pool.gpu.peer_bytes_per_s if near else pool.gpu.network_bytes_per_s
        rates.append(one * pool.gpu.link_efficiency * pool.tp)
    return LinkSpec(min(rates), 2e-4 if near else 1e-3)


def cluster_of(candidate: Candidate, serving: Serving) -> ClusterSpec:
    """The cluster of a candidate, or of one of its replicas. A worker of `pp` stages is `pp` lanes.

    Why lanes: latency/roofline.py. Errors: DoesNotFit.
    """
    workers: list[WorkerSpec] = []
    for pool in candidate.pools:
        role = Role.PREFILL if pool is candidate.prefill else Role.DECODE
        times, blocks = serving.times(pool, colocated=candidate.prefill is None), serving.blocks(pool)
        prior = linear_prior(times, candidate.chunk_tokens)
        one = WorkerSpec(
            "", role, serving.scheduler(candidate.chunk_tokens), blocks, serving.block_size, times,
            serving.prefix_caching, gpus=pool.tp, prior=prior,
        )  # fmt: skip
        names = [f"{role.value}-{i}" for i in range(pool.workers)]
        lanes = [f"{name}.{lane}" for name in names for lane in range(pool.pp)] if pool.pp > 1 else names
        workers += [replace(one, worker_id=name) for name in lanes]
    delays = serving.delays if candidate.prefill is not None else serving.colocated_delays or serving.delays
    return ClusterSpec(
        tuple(workers), serving.block_bytes, link_of(candidate, serving), delays,
        RoutingConfig(local_prefill_max_tokens=candidate.local_prefill_tokens), max_in_flight=1 << 30,
        slowdown=serving.slowdown, warming=serving.warming, jitter=serving.jitter,
    )  # fmt: skip


def linear_prior(times: StepTimes, chunk_tokens: int) -> LatencyCoefficients:
    """What the router's linear model would have learned of these step times: four shapes, four coefficients."""
    base_s = times.batch_s(0, 0.0, 1, 1)
    per_token = (times.batch_s(chunk_tokens, chunk_tokens**2 / 2, 0, chunk_tokens) - base_s) / chunk_tokens
    per_sequence = (times.batch_s(0, 0.0, 64, 64) - base_s) / 63
    per_context = (times.batch_s(0, 0.0, 64, 64 * 1024) - times.batch_s(0, 0.0, 64, 64)) / (64 * 1023)
    return LatencyCoefficients(base_s, max(0.0, per_token), max(0.0, per_sequence), max(0.0, per_context))
