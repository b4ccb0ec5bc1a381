"""The byte-level BPE tokenizer that all made models share, at any vocabulary size.

Ids:  [ 4 special | 256 bytes | merges, most frequent first ]
      0           4           260                          size

A BPE is greedy, so its first merges *are* the smaller tokenizer: one trained file is cut to any size, and nothing is
trained when a model is made. All 256 bytes are present, so any text survives encoding and decoding.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, END_OF_TEXT, IM_START, IM_END = SPECIAL_TOKENS = ("<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS_ID, END_OF_TEXT_ID, IM_START_ID, IM_END_ID = range(len(SPECIAL_TOKENS))
MIN_TOKENS = len(SPECIAL_TOKENS) + 256
SHIPPED_TOKENIZER = Path(__file__).parent / "demo" / "tokenizer.json"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train(texts: Iterable[str], num_tokens: int) -> Tokenizer:
    """A byte-level BPE of num_tokens entries, special tokens first; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def trim(definition: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """The definition (a parsed tokenizer.json) with only its first num_tokens ids, and the merges that make them."""
    model = definition["model"]
    vocab = {token: index for token, index in model["vocab"].items() if index < num_tokens}
    merges = [merge for merge in model["merges"] if "".join(merge) in vocab]
    return {**definition, "model": {**model, "vocab": vocab, "merges": merges}}


def write_tokenizer(directory: Path, max_tokens: int, max_length: int, add_bos: bool) -> int:
    """Write tokenizer.json and its configuration; returns how many tokens it has, at most max_tokens.

    add_bos: text is encoded with BOS before it, as Llama does and Qwen does not.
    """
    definition = trim(json.loads(SHIPPED_TOKENIZER.read_text(encoding="utf-8")), max_tokens)
    definition["post_processor"] = _bos_first() if add_bos else None
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "bos_token": BOS if add_bos else None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [IM_START, IM_END],
        "chat_template": ("{{ bos_token }}" if add_bos else "") + CHAT_TEMPLATE,
    }
    (directory / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return len(definition["model"]["vocab"])


def _bos_first() -> dict[str, Any]:
    """A post-processor, as tokenizer.json spells it, that puts BOS before each text."""
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [BOS_ID], "tokens": [BOS]}},
    }
