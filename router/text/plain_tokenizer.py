"""Tokenizers that are all in their tokenizer.json: loaded in milliseconds, where transformers takes seconds to import.

transformers 5 makes many families' tokenizers anew from vocabulary and merges, adds tokens, or repairs known mistakes.
What is read here directly is only what it would take from tokenizer.json unchanged; everything else is its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers

from router.text.chat_template import ChatTemplate, renders_alike

_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}
_MODEL_TYPES = {"llama", "qwen3", "qwen3_moe", "gpt2"}  # whose declared class transformers believes, and leaves alone
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KNOWN_FIELDS = {
    "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", "model_input_names", "padding_side",
    "truncation_side", "added_tokens_decoder", "additional_special_tokens", "chat_template", *_NAMED,
}  # fmt: skip
_OLD_FILES = ("special_tokens_map.json", "added_tokens.json")  # read only without added_tokens_decoder
_MORE_TEMPLATES = "additional_chat_templates"
_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class PlainTokenizer:
    """What `Tokenizer` needs of a Hugging Face tokenizer."""

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], chat_template: str | None
    ) -> None:
        self.backend_tokenizer = backend
        self.bos_token = special_tokens.get("bos_token")
        self.bos_token_id: int | None = None if self.bos_token is None else backend.token_to_id(self.bos_token)
        self.chat_template = chat_template
        self._template = None if chat_template is None else ChatTemplate(chat_template, special_tokens)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        tokenize: bool,
        add_generation_prompt: bool,
        **arguments: Any,
    ) -> str:
        """As transformers' method of this name, for the one way it is called."""
        assert self._template is not None and not tokenize
        return self._template.render(conversation, tools, add_generation_prompt, arguments)


def try_load_plain(directory: Path) -> PlainTokenizer | None:
    """The tokenizer, when it is one of these; None leaves everything, errors too, to transformers."""
    try:
        definition = json.loads((directory / "tokenizer.json").read_bytes())
        config = json.loads((directory / "tokenizer_config.json").read_bytes())
        model = json.loads((directory / "config.json").read_bytes())
        template = _template_of(directory, config)
        named = {name: config[name] for name in _NAMED if config.get(name) is not None}
        if not _is_plain(directory, definition, config, model, list(named.values())) or not _is_usual(template):
            return None
        backend = _read_backend(directory / "tokenizer.json")
        return None if backend is None else PlainTokenizer(backend, named, template)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, jinja2.TemplateError):
        return None


def _read_backend(file: Path) -> tokenizers.Tokenizer | None:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception:  # the library knows no other
        return None


def _is_plain(
    directory: Path, definition: dict[str, Any], config: dict[str, Any], model: dict[str, Any], named: list[Any]
) -> bool:
    """Whether transformers would take tokenizer.json as it is."""
    added = {token["id"]: _shape(token) for token in definition["added_tokens"]}
    declared = config.get("added_tokens_decoder")
    if declared is None:
        same = not any((directory / name).exists() for name in _OLD_FILES)
    else:
        same = {int(index): _shape(token) for index, token in declared.items()} == added
    special = {token["content"] for token in definition["added_tokens"] if token["special"]}
    return (
        same
        and config.keys() <= _KNOWN_FIELDS
        and config.get("tokenizer_class") in _CLASSES
        and model.get("model_type") in _MODEL_TYPES
        and all(isinstance(token, str) and token in special for token in named)
        and all(token in special for token in config.get("additional_special_tokens") or ())
        and not (directory / _MORE_TEMPLATES).exists()
    )


def _shape(token: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(token[name] for name in _TOKEN_FIELDS)


def _template_of(directory: Path, config: Mapping[str, Any]) -> Any:
    """A file of its own has priority."""
    file = directory / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")


def _is_usual(template: Any) -> bool:
    return template is None or (isinstance(template, str) and renders_alike(template))
