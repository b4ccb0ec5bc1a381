"""Writing a model directory: seeded random weights in a transformers model, and the tokenizer beside it."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from deploy.models import byte_bpe
from deploy.models.architectures import config_for
from deploy.models.model_spec import STARTS_WITH_BOS, ResolvedSpec
from engine.progress_bars import no_progress_bars

SHARD_SIZE = "2GB"
PROGRESS_EVERY_S = 2.0
NORM_SPREAD = 0.1  # norm weights are not all one, so that a norm left out changes the tokens
BIAS_SPREAD = 0.05
SHARP = 2.0  # norms of queries and keys, where there are any


def write_checkpoint(directory: Path, spec: ResolvedSpec) -> None:
    """Write config.json, the weights, generation_config.json and the tokenizer into an existing directory.

    Cost: the weights once in memory (safetensors writes from where they lie), about a second per 50 M of them. Up to
          twice for a mixture: its experts are published one by one, and transformers copies them apart to write.
    """
    add_bos = spec.arch in STARTS_WITH_BOS
    num_tokens = byte_bpe.write_tokenizer(directory, spec.vocab_size, spec.max_position_embeddings, add_bos)
    model = random_model(spec, num_tokens)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=[byte_bpe.END_OF_TEXT_ID, byte_bpe.IM_END_ID],
        pad_token_id=byte_bpe.END_OF_TEXT_ID,
    )
    save(model, directory)


def save(model: PreTrainedModel, directory: Path) -> None:
    """Write the model's configuration and weights without a progress bar, readable for all."""
    with no_progress_bars():
        model.save_pretrained(directory, max_shard_size=SHARD_SIZE)
    for path in directory.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors leaves 0600, and another user may serve what this one made


@torch.no_grad()
def random_model(spec: ResolvedSpec, num_tokens: int) -> PreTrainedModel:
    """A model whose greedy text wanders: the seed decides every weight.

    Ids from num_tokens on have no text, so the output rows for them are zero: they never win a greedy choice.

    How the spreads are chosen. A matrix of spread g / sqrt(hidden) multiplies a normalized input by g. With g = 2 each
    layer adds more to the residual stream than the embedding put there, and attention picks tokens instead of
    averaging them; with less, small models fall into loops of a few tokens, the more so where the output matrix is the
    embedding and the last token votes for itself. A tied embedding is therefore small. The final norm makes the input
    of the output matrix 1 in size, so logits have a spread of output_spread * sqrt(hidden).
    """
    config = config_for(spec)
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec.dtype))
    model.tie_weights()  # left undone with the initialization
    dice = torch.Generator().manual_seed(spec.seed)
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings().weight
    tied = output is embedding
    output_spread = (0.25 if tied else 1.0) / spec.hidden_size**0.5
    progress = Progress(sum(param.numel() for param in model.parameters()))
    for name, module in model.named_modules():
        for param_name, param in _own_tensors(module):
            centre, spread = 0.0, spec.init_std
            if param is output:
                spread = output_spread
            elif isinstance(module, nn.Embedding):  # tokens, or positions, which must not drown them
                spread = output_spread if tied else 1.0
            elif "norm" in type(module).__name__.lower():
                centre = _norm_centre(name, module) if param_name == "weight" else 0.0
                spread = NORM_SPREAD if param_name == "weight" else BIAS_SPREAD
            elif param.ndim == 1 or "bias" in param_name:
                spread = BIAS_SPREAD
            param.normal_(centre, spread, generator=dice)
            progress.advance(param.numel(), name)
    output[num_tokens:] = 0
    progress.finish()
    return model.eval()


def _norm_centre(name: str, module: nn.Module) -> float:
    """Where a norm's weights lie: 1, but sharper for queries and keys."""
    centre = SHARP if name.endswith(("q_norm", "k_norm")) else 1.0
    return centre - 1 if "Gemma" in type(module).__name__ else centre  # Gemma's norms multiply by 1 + weight


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds of this module itself: its parameters, and buffers that are saved (router biases)."""
    yield from module.named_parameters(recurse=False)
    saved = module.state_dict()
    for name, buffer in module.named_buffers(recurse=False):
        if name in saved and buffer.is_floating_point():
            yield name, buffer


class Progress:
    """A line on standard error every two seconds, so small models print nothing."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._started = self._printed = time.monotonic()

    def advance(self, count: int, name: str) -> None:
        """count more weights are filled, in the part called name."""
        self._done += count
        now = time.monotonic()
        if now - self._printed >= PROGRESS_EVERY_S:
            left_s = (now - self._started) * (self._total / self._done - 1)
            print(f"weights {self._done / self._total:4.0%}, {left_s:.0f} s left ({name})", file=sys.stderr, flush=True)
            self._printed = now

    def finish(self) -> None:
        """All weights are filled; what remains is to write them."""
        if self._printed != self._started:
            print("weights 100%, writing", file=sys.stderr, flush=True)
