"""How a loaded module is computed: which kernels, and the proof that they give the module's own numbers.

    native step      the whole pass in one call, for the families of engine/native/decoder_plan.py
    native kernels   the module's own forward, its linears packed and its attention native
    torch            the module's own forward, every product by torch: no compiler needed, and the reference

The choice falls from above to the first that this machine and model allow, and is logged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.attention import ReferenceAttention, TiledAttention
from engine.attention.interface import AttentionBackend
from engine.attention.native import NativeAttention
from engine.batch import pack
from engine.dry_run import CHUNKS, TOLERANCE, DryRunFacts
from engine.experts import trial_routing
from engine.forward import Forward, ModuleForward
from engine.invariant import make_invariant
from engine.kv_pool import KvPool
from engine.native import load_library
from engine.native.decoder import NativeDecoder
from engine.native.decoder_plan import NotThisForm, read_plan
from engine.native.library import NativeLibrary
from engine.native.module_linears import use_packed_linears
from engine.row_tiles import ROW_TILE
from pdserve.ids import SequenceKey
from pdserve.kv_layout import KvLayout
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest, SequenceStep

CHOICES = ("auto", "torch")
TRIAL_BLOCK_SIZE = 4

log = logging.getLogger(__name__)


class TrialFailed(Exception):
    """The chosen kernels do not give the module's own logits."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What computes a model's steps."""

    module: Any  # its forward, unless `decoder` took its weights
    deterministic: bool
    library: NativeLibrary | None
    decoder: NativeDecoder | None

    @property
    def name(self) -> str:
        """For logs: one of the three above."""
        if self.decoder is not None:
            return "native step"
        return "torch" if self.library is None else "native kernels"

    @property
    def row_multiple(self) -> int:
        """What rows are padded to: torch's elementwise kernels treat the last few otherwise."""
        return ROW_TILE if self.deterministic and self.decoder is None else 1

    def forward_over(self, pool: KvPool, backend: AttentionBackend | None = None) -> Forward:
        """The pass over this pool; with another attention than the chosen one where `backend` is given."""
        if self.decoder is not None:
            assert backend is None, "the native step has its own attention"
            return self.decoder.step(pool)
        if backend is None and self.library is not None:
            native = NativeAttention(pool, self.library)
            return ModuleForward(self.module, native, native)
        torch_s = TiledAttention(pool) if self.deterministic else ReferenceAttention(pool)
        return ModuleForward(self.module, pool, backend or torch_s)


def choose_kernels(module: Any, facts: DryRunFacts, choice: str, deterministic: bool, num_threads: int) -> Kernels:
    """Pack what can be packed, and try it on the trial prompt. Called once, after the dry run; empties packed weights.

    Raises TrialFailed: the module is then good for nothing, and is to be loaded again for `torch`.
    """
    on_cpu = module.get_input_embeddings().weight.device.type == "cpu"
    library = load_library(num_threads) if choice == "auto" and on_cpu else None
    decoder = None if library is None else _native_decoder(module, facts, library)
    if deterministic or decoder is not None:
        torch.set_num_threads(1)  # what is left for torch is either nothing or must not be divided
    if decoder is None:
        if library is not None:
            use_packed_linears(module, library)
        if deterministic:
            make_invariant(module)
    kernels = Kernels(module, deterministic, library, decoder)
    if library is not None:
        _try(kernels, facts)
    threads = num_threads if library is not None else torch.get_num_threads()
    log.info("%s is computed by: %s, threads: %d", module.config.model_type, kernels.name, threads)
    return kernels


def _native_decoder(module: Any, facts: DryRunFacts, library: NativeLibrary) -> NativeDecoder | None:
    try:
        plan = read_plan(module, facts.calls)
    except NotThisForm as reason:
        log.info("no native step: %s", reason)
        return None
    return NativeDecoder(plan, library)


def _try(kernels: Kernels, facts: DryRunFacts) -> None:
    """The trial prompt in its chunks, over a small pool, against the logits of the module's own attention."""
    try:
        found = _trial_logits(kernels, facts)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as failure:
        raise TrialFailed(f"{kernels.name}: {type(failure).__name__}: {failure}") from failure
    limit = TOLERANCE[facts.trial_logits.dtype]
    expected = facts.trial_logits[[last - 1 for _, last in CHUNKS]].float()
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    log.debug("%s differs by %.1e", kernels.name, error)
    if not error <= limit:
        raise TrialFailed(f"{kernels.name}: logits differ by {error:.1e} of their norm, limit {limit}")


def _trial_logits(kernels: Kernels, facts: DryRunFacts) -> Tensor:
    """[chunks, V]: the last row of each chunk."""
    ids = facts.trial_ids
    count = -(-len(ids) // TRIAL_BLOCK_SIZE)
    dtype = str(facts.trial_logits.dtype).removeprefix("torch.")
    layout = KvLayout(model="trial", dtype=dtype, block_size=TRIAL_BLOCK_SIZE, layers=facts.layers)
    forward = kernels.forward_over(KvPool(layout, count))
    request = SampleRequest(SamplingParams(max_tokens=1), ids, len(ids))
    rows = []
    with trial_routing(kernels.module, facts.routing) as routing:
        for first, last in CHUNKS:
            step = SequenceStep(SequenceKey("trial"), ids[first:last], first, list(range(count))[::-1], request)
            routing.replay(first, last)
            batch = pack([step], TRIAL_BLOCK_SIZE, kernels.row_multiple, torch.device("cpu"))
            rows.append(forward(batch).float().clone())
    return torch.cat(rows)
