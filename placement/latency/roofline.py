"""Step times from first principles: the larger of arithmetic and memory traffic for each part of a step.

A step computes `prefill_tokens` prompt tokens and one token for each of `decode_sequences`:

    matrices    max(flops of all tokens / rate, bytes of the weights read / bandwidth)
    attention   prompts: max(flops of their query-key pairs, KV bytes); decodes: KV bytes of their context
    collectives tensor parallel: two all-reduces of the activations a layer, ring: 2 (tp - 1)/tp of the bytes
    overhead    a constant per step and per layer

The roofline (Williams et al., CACM 2009) per operator class, as DistServe's appendix A and NVIDIA's planner do. A
pipeline of `pp` stages is `pp` lanes: each lane's step passes all stages one after the other, while the other lanes'
steps are in the other stages; so a lane's step takes the whole model's time, and what a pipeline gains is memory and
`pp` steps at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from placement.hardware.catalogue import GpuType
from placement.latency.shape import ModelShape


@dataclass(frozen=True, slots=True)
class StepParts:
    """Where a step's time goes, seconds."""

    matrices_s: float
    attention_s: float
    collectives_s: float
    overhead_s: float

    @property
    def total_s(self) -> float:
        return self.matrices_s + self.attention_s + self.collectives_s + self.overhead_s


@dataclass(frozen=True, slots=True)
class Roofline:
    """Step times of a model on `tp` GPUs of one type, in `pp` stages."""

    model: ModelShape
    gpu: GpuType
    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1 or self.pp < 1 or self.pp > self.model.layers:
            raise ValueError(f"tp={self.tp}, pp={self.pp}: each at least 1, pp at most {self.model.layers} layers")
        if self.model.heads % self.tp:
            raise ValueError(f"tp={self.tp} does not divide the {self.model.heads} heads of {self.model.name}")

    def batch_s(self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int) -> float:
        """One step; `prefill_pairs` counts the query-key pairs of its prompt tokens, `context_tokens` all KV read."""
        return self.parts(prefill_tokens, prefill_pairs, decode_sequences, context_tokens).total_s

    def parts(self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int) -> StepParts:
        """One step, taken apart."""
        model, gpu, tp = self.model, self.gpu, self.tp
        tokens = prefill_tokens + decode_sequences
        rate = tp * gpu.flops * gpu.flops_efficiency
        bandwidth = tp * gpu.memory_bytes_per_s * gpu.memory_efficiency
        sampled = decode_sequences + (prefill_tokens > 0)
        arithmetic_s = (model.flops_per_token * tokens + 2.0 * model.vocab * model.hidden * sampled) / rate
        reading_s = model.read_weight_bytes(tokens) / bandwidth
        kv_s = context_tokens * model.kv_bytes_per_token / bandwidth
        attention_s = max(model.flops_per_pair * prefill_pairs / rate, kv_s)
        overhead_s = gpu.step_overhead_s + model.layers * gpu.layer_overhead_s
        return StepParts(max(arithmetic_s, reading_s), attention_s, self._collectives_s(tokens), overhead_s)

    def _collectives_s(self, tokens: int) -> float:
        model, gpu, tp = self.model, self.gpu, self.tp
        activations = tokens * model.hidden * 2.0
        link = gpu.peer_bytes_per_s * gpu.link_efficiency
        seconds = 0.0
        if tp > 1:
            seconds += 2 * model.layers * (gpu.collective_latency_s + 2.0 * (tp - 1) / tp * activations / link)
        return seconds + (self.pp - 1) * (gpu.collective_latency_s + activations / tp / link)

    @property
    def kv_bytes(self) -> float:
        """KV memory of all `tp * pp` GPUs, after the weights and a tenth for activations; may be <= 0."""
        return self.tp * self.pp * 0.9 * self.gpu.memory_bytes - self.model.weight_bytes
