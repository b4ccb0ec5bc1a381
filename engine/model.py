"""Loading a Hugging Face checkpoint into a model that a runner can step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.attention.plug import ATTENTION_NAME
from engine.dry_run import DryRunFacts, dry_run
from engine.fingerprint import model_fingerprint
from engine.host_memory import thrifty_loading
from engine.kernels import CHOICES, Kernels, TrialFailed, choose_kernels
from engine.kv_pool import TORCH_DTYPES
from engine.progress_bars import no_progress_bars
from engine.rope import VARIANTS, fix_rotary
from engine.unsupported import UnsupportedModel
from pdserve.kv_layout import KvLayout, LayerLayout

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with our attention in it, and what was learned while loading it."""

    kernels: Kernels  # what computes it
    config: Any  # the transformers configuration
    dtype: str  # name in KvLayout's DTYPE_BYTES
    device: torch.device
    layers: tuple[LayerLayout, ...]  # as the dry run saw them, not as the configuration says
    vocab_size: int  # token ids are below it, as input and as output
    max_model_len: int  # tokens of the longest sequence
    eos_token_ids: tuple[int, ...]
    fingerprint: str  # of configuration and weights
    weight_bytes: int  # that a step reads: all matrices, the output's among them; not the embedding's table

    @property
    def deterministic(self) -> bool:
        """Batch-invariant: a token's numbers do not depend on what else is in the step."""
        return self.kernels.deterministic

    def kv_layout(self, block_size: int) -> KvLayout:
        """The layout of this model's KV in blocks of that many slots."""
        return KvLayout(model=self.fingerprint, dtype=self.dtype, block_size=block_size, layers=self.layers)


def load_model(
    source: str | Path,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    max_model_len: int | None = None,
    deterministic: bool | None = None,
    kernels: str = "auto",
    num_threads: int = 1,
) -> LoadedModel:
    """Load a checkpoint (directory or hub id; safetensors only, no code from it) and try it.

    Shows `transformers`' progress bar. Cost: the weights once in memory; where the file has the dtype that is asked
    for they are mapped from it, shared by every worker of the host, and the file must not change in place.
    `deterministic` defaults to float32 on the CPU; it sets the process to one intra-op thread of torch. `kernels` is
    one of engine.kernels.CHOICES; `num_threads` are those of the native kernels, and change no number.
    Raises UnsupportedModel for what we would compute wrongly; ValueError for a bad argument; OSError for no checkpoint.
    """
    device = torch.device(device)
    if dtype not in TORCH_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(TORCH_DTYPES)}")
    if dtype == "float16" and device.type == "cpu":
        raise ValueError("dtype is 'float16'; on the CPU it must be 'float32' or 'bfloat16', float16 is slow there")
    invariant = (dtype == "float32" and device.type == "cpu") if deterministic is None else deterministic
    if invariant and (dtype != "float32" or device.type != "cpu"):
        raise ValueError(f"deterministic mode is for float32 on the CPU, not {dtype} on {device.type}")
    if kernels not in CHOICES:
        raise ValueError(f"kernels is {kernels!r}; it must be one of {', '.join(CHOICES)}")
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    name = f"{config.model_type} ({source})"
    _refuse_by_config(config, name)
    limit = _max_model_len(config, max_model_len, name)
    with thrifty_loading():
        module = _load_module(source, config, dtype, device, name)
    fingerprint = model_fingerprint(module)
    fix_rotary(module, limit)
    facts = dry_run(module, name, limit)
    weight_bytes, vocab_size = _weight_bytes(module), _vocab_size(module, facts)
    try:
        chosen = choose_kernels(module, facts, kernels, invariant, num_threads)
    except TrialFailed as failure:
        log.warning("%s: %s; it is loaded again for torch's", name, failure)
        return load_model(source, dtype, device, max_model_len, deterministic, "torch", num_threads)
    return LoadedModel(
        kernels=chosen,
        config=config,
        dtype=dtype,
        device=device,
        layers=facts.layers,
        vocab_size=vocab_size,
        max_model_len=limit,
        eos_token_ids=_eos_token_ids(module),
        fingerprint=fingerprint,
        weight_bytes=weight_bytes,
    )


def _weight_bytes(module: Any) -> int:
    """A tied matrix counts once, and a table of which a few rows are read not at all."""
    table, output = module.get_input_embeddings().weight, module.get_output_embeddings()
    total: int = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    tied = output is not None and output.weight is table
    return total if tied else total - int(table.numel() * table.element_size())


def _refuse_by_config(config: Any, name: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModel(f"{name}: the checkpoint is quantized, which is not supported")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name}: it has an encoder, which is not supported")


def _load_module(source: str | Path, config: Any, dtype: str, device: torch.device, name: str) -> Any:
    try:
        with no_progress_bars():
            module = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=TORCH_DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=ATTENTION_NAME,
            )
    except ValueError as error:  # transformers: no causal model for this configuration, or no attention to choose
        raise UnsupportedModel(f"{name}: {error}") from error
    except RuntimeError as error:  # tensors that do not fit the configuration
        raise ValueError(f"{name}: its weights do not fit its config.json ({_mismatch(error)})") from error
    except KeyError as error:  # its class looks our attention up in a table of its own
        if error.args != (ATTENTION_NAME,):
            raise
        raise UnsupportedModel(f"{name}: it has its own attention, which cannot be paged") from error
    _refuse_not_finite(module, name)
    return module.to(device).eval().requires_grad_(False)


def _refuse_not_finite(module: Any, name: str) -> None:
    """One not-a-number in a weight makes every token after it nonsense. Cost: the weights read once, no copy."""
    for part, weight in module.named_parameters():
        if weight.is_floating_point() and weight.numel():
            lowest, highest = torch.aminmax(weight.detach())
            if not (torch.isfinite(lowest) and torch.isfinite(highest)):
                raise ValueError(f"{name}: tensor {part} holds numbers that are not finite")


def _mismatch(error: RuntimeError) -> str:
    """The line of transformers' message that names a tensor and both shapes; else its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "size mismatch" in line or "MISMATCH" in line), lines[0])[:300]


def _max_model_len(config: Any, asked: int | None, name: str) -> int:
    text = config.get_text_config()
    known = getattr(text, "max_position_embeddings", None)
    if known is None or known <= 0:
        if asked is None:
            raise UnsupportedModel(f"{name}: the configuration gives no longest sequence; say max_model_len")
        return asked
    rope = getattr(text, "rope_parameters", None) or {}
    stretch = float(rope.get("factor", 1.0)) if rope.get("rope_type") == VARIANTS[0] else 1.0
    limit = int(known * stretch)
    if asked is not None and not 0 < asked <= limit:
        raise ValueError(f"max_model_len is {asked:,}; {name} allows 1 to {limit:,}")
    return limit if asked is None else asked


def _vocab_size(module: Any, facts: DryRunFacts) -> int:
    return min(facts.vocab_size, int(module.get_input_embeddings().weight.shape[0]))


def _eos_token_ids(module: Any) -> tuple[int, ...]:
    """From generation_config.json, else config.json; sorted."""
    for config in (module.generation_config, module.config.get_text_config()):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return tuple(sorted({found} if isinstance(found, int) else set(found)))
    return ()
