"""A decoder packed for the native step: its whole forward pass is one call, without Python between the layers."""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.batch import StepBatch
from engine.host_memory import let_go
from engine.kv_pool import KvPool
from engine.native.decoder_plan import DecoderPlan, LayerPlan, NormPlan
from engine.native.library import NativeLibrary
from engine.native.packed_linear import DTYPES, Packer, Store
from engine.native.structs import (
    PROFILE_PHASES,
    DecoderStruct,
    LayerStruct,
    NormStruct,
    Profile,
    RopeStruct,
    StepStruct,
    check_structs,
)

_GATES = {"silu": Store.SILU_GATE, "gelu_tanh": Store.GELU_TANH_GATE}


class NativeDecoder:
    """Packed weights; step() makes the pass over a pool.

    The plan's linears are emptied as they are packed, so that the weights are never in memory twice; where the output
    matrix is the embedding, that one is kept in both forms.
    """

    def __init__(self, plan: DecoderPlan, library: NativeLibrary) -> None:
        check_structs(library.functions)
        self.library = library
        self._packer = Packer(library)
        self._kept: list[Any] = []  # what the structures point at
        first = plan.layers[0]
        embedding = plan.embedding.weight.detach()
        self._layers = (LayerStruct * len(plan.layers))(*(self._layer(layer) for layer in plan.layers))
        self._calls = [layer.call for layer in plan.layers]
        self._ropes = (RopeStruct * max(1, len(plan.ropes)))()
        for struct, rope in zip(self._ropes, plan.ropes, strict=False):
            struct.frequencies = self._keep(rope.frequencies)
            struct.rotary, struct.scale = 2 * rope.frequencies.numel(), rope.scale
        self._struct = DecoderStruct(
            dtype=DTYPES[embedding.dtype],
            num_layers=len(plan.layers),
            heads=plan.heads,
            hidden=embedding.shape[1],
            inner=first.down.in_features,
            vocabulary=plan.head.out_features,
            norm_all_heads=plan.norm_all_heads,
            layers=self._layers,
            ropes=self._ropes,
            num_ropes=len(plan.ropes),
            last=self._norm(plan.last),
            head=self._pack((plan.head,), tied_to=plan.embedding),
            embedding=self._keep(embedding),
            embedding_stride=embedding.stride(0),
            embedding_scale=plan.embedding_scale,
            residual_scale=plan.residual_scale,
            logit_scale=plan.logit_scale,
            logit_softcap=plan.logit_softcap,
        )

    def step(self, pool: KvPool) -> NativeStep:
        """The pass over this pool."""
        layers = (LayerStruct * len(self._calls))(*self._layers)
        for index, (layer, call) in enumerate(zip(layers, self._calls, strict=True)):
            layer.key_offset = pool.layout.layer_offset(index)
            layer.value_offset = pool.value_offset(index)
            layer.scale, layer.window, layer.softcap = call.scale, call.window or 0, call.softcap or 0.0
        struct = DecoderStruct.from_buffer_copy(self._struct)
        facts = pool.layout.layers[0]
        assert all(layer == facts and layer.key_size == layer.value_size for layer in pool.layout.layers)
        struct.layers = layers
        struct.kv_heads, struct.head_size, struct.block_size = facts.kv_heads, facts.key_size, pool.layout.block_size
        return NativeStep(self, struct, layers, pool)

    def _layer(self, plan: LayerPlan) -> LayerStruct:
        return LayerStruct(
            **{
                name: self._norm(getattr(plan, name))
                for name in ("before_attention", "after_attention", "before_mlp", "after_mlp", "query", "key")
            },
            qkv=self._pack(plan.qkv),
            out=self._pack((plan.out,)),
            gate_up=self._pack_gated(plan.gate_up),
            down=self._pack((plan.down,)),
            rope=-1 if plan.rope is None else plan.rope,
            gate=_GATES[plan.activation],
        )

    def _norm(self, plan: NormPlan | None) -> NormStruct:
        return NormStruct() if plan is None else NormStruct(self._keep(plan.weight), plan.eps)

    def _pack(self, linears: tuple[nn.Linear, ...], tied_to: nn.Embedding | None = None) -> Any:
        packed = self._packer.pack([part.weight for part in linears], [part.bias for part in linears])
        if tied_to is None or linears[0].weight is not tied_to.weight:
            for part in linears:
                let_go(part.weight)
        self._kept.append(packed)
        return packed.struct

    def _pack_gated(self, linears: tuple[nn.Linear, ...]) -> Any:
        if len(linears) == 1:
            (gate, up), bias = linears[0].weight.chunk(2), linears[0].bias
            biases = (None, None) if bias is None else tuple(bias.chunk(2))
        else:
            gate, up = (part.weight for part in linears)
            biases = tuple(part.bias for part in linears)
        packed = self._packer.pack_gated(gate, up, biases)
        for part in linears:
            let_go(part.weight)
        self._kept.append(packed)
        return packed.struct

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


class NativeStep:
    """`Forward` by the native step; owned by one thread."""

    def __init__(self, decoder: NativeDecoder, struct: DecoderStruct, layers: Any, pool: KvPool) -> None:
        self._decoder = decoder  # owns the weights
        self._struct, self._layers, self._pool = struct, layers, pool
        self._act = decoder.library.functions.pdserve_step
        self._act.restype = None
        self._act.argtypes = [ctypes.c_void_p] * 4
        self._logits = torch.empty(0, struct.vocabulary)
        self._profile: Any = None

    def __call__(self, batch: StepBatch) -> Tensor:
        starts, ends = np.array(batch.starts, dtype=np.int64), np.array(batch.ends, dtype=np.int64)
        last_rows = np.cumsum(ends - starts)
        first_rows = last_rows + starts - ends
        samples = batch.num_samples
        sample_sequences = np.searchsorted(last_rows, batch.sample_rows[:samples].numpy(), side="right")
        if len(self._logits) < samples:
            self._logits = torch.empty(samples, self._struct.vocabulary)
        tables = batch.block_tables
        step = StepStruct(
            rows=batch.num_tokens,
            num_sequences=len(starts),
            num_samples=samples,
            table_stride=tables.stride(0),
            token_ids=batch.input_ids.data_ptr(),
            positions=batch.positions.data_ptr(),
            write_blocks=batch.write_blocks.data_ptr(),
            write_slots=batch.write_slots.data_ptr(),
            starts=starts.ctypes.data,
            ends=ends.ctypes.data,
            first_rows=first_rows.ctypes.data,
            block_tables=tables.data_ptr(),
            sample_rows=batch.sample_rows.data_ptr(),
            sample_sequences=sample_sequences.ctypes.data,
            pool=self._pool.data.data_ptr(),
            block_stride=self._pool.data.stride(0),
            logits=self._logits.data_ptr(),
        )
        self._act(byref(self._struct), byref(step), self._decoder.library.threads, self._profile)
        return self._logits[:samples]

    def profile(self) -> dict[str, float]:
        """Seconds per phase since the last call; the first call starts the measurement."""
        found = [0.0] * len(PROFILE_PHASES) if self._profile is None else list(self._profile)
        self._profile = Profile()
        return dict(zip(PROFILE_PHASES, found, strict=True))
