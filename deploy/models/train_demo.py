"""Train the demo model: a Llama of 3.95 M parameters that writes Python, from the standard library's own sources.

    python -m deploy.models.train_demo --output DIR [--steps N]

One CPU thread, float32, plain torch; about a second and a quarter per step on an idle core. A usable checkpoint is
written early and often. The same Python version, torch version and seed give the same batches and, on the same kind
of CPU, the same weights.
"""

import argparse
import copy
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from deploy.models import byte_bpe, checkpoint, corpus
from deploy.models.muon import Muon

HELD_OUT_EVERY = 40  # every 40th file is never trained on: the loss on these is the one reported
ROW_TOKENS = 256  # most steps: many short rows
LONG_ROW_TOKENS = 2048  # every LONG_EVERY-th step: one long row, so that late positions are not strangers
LONG_EVERY = 8
CHAT_SHARE = 0.12
WARMUP_STEPS = 40
DEMO_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What one training run needs to know."""

    output: Path  # directory the model is written to
    steps: int  # optimizer steps, each over step_tokens
    step_tokens: int  # tokens per step
    matrix_rate: float  # peak learning rate of the layers' matrices (Muon)
    vector_rate: float  # peak learning rate of embedding and norms (AdamW)
    seed: int
    save_every: int  # steps between checkpoints
    start: Path | None  # a checkpoint whose training this run brings to its end; None: from scratch


@dataclass(frozen=True, slots=True)
class TokenizedCorpus:
    """The corpus as token ids."""

    source: Tensor  # [n] int64: training files one after the other, each closed by END_OF_TEXT
    chats: list[list[int]]  # one ChatML exchange each
    held_out: Tensor  # [m] int64: files that are never trained on


def tokenize_corpus(tokenizer: Tokenizer) -> TokenizedCorpus:
    """All training and held-out text as ids."""
    source: list[int] = []
    held_out: list[int] = []
    for index, text in enumerate(corpus.source_texts()):
        ids = [*tokenizer.encode(text, add_special_tokens=False).ids, byte_bpe.END_OF_TEXT_ID]
        (held_out if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else source).extend(ids)
    chats = []
    for exchange in corpus.exchanges():
        text = f"<|im_start|>user\n{exchange.question}<|im_end|>\n<|im_start|>assistant\n{exchange.answer}<|im_end|>\n"
        chats.append(tokenizer.encode(text, add_special_tokens=False).ids)
    return TokenizedCorpus(torch.tensor(source), chats, torch.tensor(held_out))


def rows(tokens: TokenizedCorpus, num_rows: int, row_tokens: int, dice: random.Random) -> Tensor:
    """A batch [num_rows, row_tokens] of ids: each row is BOS, then a run of source or of whole chats."""
    batch = torch.full((num_rows, row_tokens), byte_bpe.BOS_ID)
    for row in batch:
        if dice.random() < CHAT_SHARE:
            ids: list[int] = []
            while len(ids) < row_tokens:
                ids += dice.choice(tokens.chats)
            row[1:] = torch.tensor(ids[: row_tokens - 1])
        else:
            start = dice.randrange(len(tokens.source) - row_tokens)
            row[1:] = tokens.source[start : start + row_tokens - 1]
    return batch


def batches(tokens: TokenizedCorpus, run: TrainingRun) -> Iterator[Tensor]:
    """The batches of a run, in order; the seed decides them."""
    dice = random.Random(run.seed)
    for step in range(run.steps):
        row_tokens = LONG_ROW_TOKENS if step % LONG_EVERY == LONG_EVERY - 1 else ROW_TOKENS
        yield rows(tokens, run.step_tokens // row_tokens, row_tokens, dice)


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood (nats per token) of ids [B, T] given the tokens before."""
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: Tensor, row_tokens: int = 512, max_rows: int = 64) -> float:
    """Mean loss over evenly spaced rows of files that were not trained on."""
    num_rows = min(max_rows, len(held_out) // row_tokens)
    starts = torch.linspace(0, len(held_out) - row_tokens, num_rows).long().tolist()
    bos = torch.tensor([byte_bpe.BOS_ID])
    losses = [
        next_token_loss(model, torch.cat([bos, held_out[start : start + row_tokens - 1]])[None]) for start in starts
    ]
    return float(torch.stack(losses).mean())


def rate_share(step: int, run: TrainingRun) -> float:
    """The learning rate at a step as a share of its peak.

    From scratch: a linear warm-up, then half a cosine to 2 %. From a checkpoint: a line from 35 % to 1 %.
    """
    if run.start is not None:
        return 0.35 - 0.34 * step / run.steps
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, run.steps - WARMUP_STEPS)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def demo_config(vocab_size: int) -> LlamaConfig:
    """The demo model's shape: under 8 MB in bfloat16."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=byte_bpe.BOS_ID,
        eos_token_id=byte_bpe.END_OF_TEXT_ID,
        pad_token_id=byte_bpe.END_OF_TEXT_ID,
    )


def save_demo(model: LlamaForCausalLM, directory: Path) -> None:
    """Write a servable directory: weights in bfloat16, configuration, sampling defaults, tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    smaller = copy.deepcopy(model).to(torch.bfloat16)
    smaller.generation_config = GenerationConfig(
        bos_token_id=byte_bpe.BOS_ID,
        eos_token_id=[byte_bpe.END_OF_TEXT_ID, byte_bpe.IM_END_ID],
        pad_token_id=byte_bpe.END_OF_TEXT_ID,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    checkpoint.save(smaller, directory)
    byte_bpe.write_tokenizer(
        directory, model.config.vocab_size, max_length=model.config.max_position_embeddings, add_bos=True
    )


def train(run: TrainingRun) -> None:
    """Train, from scratch or from run.start; write checkpoints, in bfloat16, to run.output."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    tokenizer = Tokenizer.from_file(str(byte_bpe.SHIPPED_TOKENIZER))
    tokens = tokenize_corpus(tokenizer)
    print(f"{len(tokens.source)} source, {sum(map(len, tokens.chats))} chat, {len(tokens.held_out)} held-out tokens")
    if run.start is None:
        model = LlamaForCausalLM(demo_config(tokenizer.get_vocab_size()))
    else:
        model = LlamaForCausalLM.from_pretrained(run.start, dtype=torch.float32)
    print(f"{model.num_parameters()} parameters, {2 * model.num_parameters()} bytes in bfloat16", flush=True)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, run.matrix_rate), run.matrix_rate),
        (torch.optim.AdamW(vectors, run.vector_rate, betas=(0.9, 0.98), weight_decay=0.0), run.vector_rate),
    ]
    started, recent = time.monotonic(), 0.0
    for step, ids in enumerate(batches(tokens, run)):
        loss = next_token_loss(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_share(step, run)
            optimizer.step()
            optimizer.zero_grad()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % 20 == 0:
            elapsed_s = time.monotonic() - started
            left_s = elapsed_s / (step + 1) * (run.steps - step - 1)
            print(f"step {step}/{run.steps} loss {recent:.3f} {elapsed_s:.0f} s, {left_s:.0f} s left", flush=True)
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            save_demo(model, run.output)
            loss_now = held_out_loss(model, tokens.held_out)
            print(f"saved after {step + 1} steps, held-out loss {loss_now:.3f}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory the model is written to")
    parser.add_argument("--steps", type=int, default=1300, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--step-tokens", type=int, default=2048, help="tokens per step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--start", type=Path, metavar="DIR", help="bring a checkpoint's training to its end instead")
    parser.add_argument("--retrain-tokenizer", action="store_true", help="first replace the shipped tokenizer.json")
    args = parser.parse_args()
    if args.retrain_tokenizer:
        byte_bpe.train(corpus.source_texts(), DEMO_TOKENS).save(str(byte_bpe.SHIPPED_TOKENIZER), pretty=False)
    train(
        TrainingRun(
            output=args.output,
            steps=args.steps,
            step_tokens=args.step_tokens,
            matrix_rate=1e-2,
            vector_rate=3e-3,
            seed=args.seed,
            save_every=args.save_every,
            start=args.start,
        )
    )


if __name__ == "__main__":
    main()
