"""The checkpoint's tokenizer, as the fronts use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import tokenizers

from router.text.backend import ids_of, text_of
from router.text.chat import ChatMessage, ChatOptions, ChatTemplateError, render_chat
from router.text.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowedDetokenizer
from router.text.literal import LiteralEncoder
from router.text.plain_tokenizer import try_load_plain

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PLAIN_CHAT = ChatOptions()


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes with (GPT-2, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_alphabet()


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads at once.

    Decoding is the tokenizer's own, special tokens skipped, without transformers' clean-up of spaces: a stream cannot
    take a space back (transformers itself ignores that setting for BPE).
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        """`hf_tokenizer` is transformers' own, or a `PlainTokenizer`."""
        self._hf = hf_tokenizer
        self._backend: tokenizers.Tokenizer = hf_tokenizer.backend_tokenizer
        self._backend.no_truncation()  # some tokenizer.json files ship with it on
        self._backend.no_padding()
        self._added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in self._added.items() if token.special)
        decoder = self._backend.decoder
        self._decoder: dict[str, Any] = {} if decoder is None else json.loads(decoder.__getstate__())
        self._has_byte_fallback = "ByteFallback" in json.dumps(self._decoder)
        special = {index: self._added[index] for index in self._special_ids}
        self._literal = LiteralEncoder(self._backend, special) if self.has_chat_template else None
        # No prompt has fewer tokens than its characters over this.
        self.max_token_chars = max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)
        self.bytes_of = lru_cache(maxsize=None)(self._bytes_of)  # at most one entry per id of the vocabulary
        self.text_of = lru_cache(maxsize=None)(self._text_of)

    @property
    def is_byte_level(self) -> bool:
        return bool(self._decoder.get("type") == "ByteLevel")

    @property
    def bos_token_id(self) -> int | None:
        index: int | None = self._hf.bos_token_id
        return index

    @property
    def has_chat_template(self) -> bool:
        return self._hf.chat_template is not None

    @property
    def has_tools_template(self) -> bool:
        """Whether the chat template has a place for tools."""
        return "tools" in str(self._hf.chat_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """A prompt's ids as the Hugging Face tokenizer gives them, special tokens parsed; BOS not twice."""
        ids = ids_of(self._backend, text, add_special_tokens=add_special_tokens)
        bos = self.bos_token_id if add_special_tokens else None
        if bos is not None and ids[:2] == [bos, bos] and text.startswith(self._hf.bos_token):
            return ids[1:]
        return ids

    def encode_chat(self, messages: Sequence[ChatMessage], options: ChatOptions = PLAIN_CHAT) -> list[int]:
        """A conversation's ids through the checkpoint's template; contents are never parsed as special tokens.

        Raises ChatTemplateError when there is no template or it refuses the messages.
        """
        if self._literal is None:
            raise ChatTemplateError("the model has no chat template; use /v1/completions")
        # A conversation without anything to protect is encoded exactly as transformers does it.
        parts: list[ChatMessage | ChatOptions] = [*messages, options]
        if not any(self._literal.is_dangerous(text) for part in parts for text in part.texts()):
            rendered = render_chat(self._hf, messages, options)
            return ids_of(self._backend, rendered, add_special_tokens=options.add_special_tokens)
        protect = self._literal.protect
        rendered = render_chat(self._hf, [one.map_texts(protect) for one in messages], options.map_texts(protect))
        return self._literal.encode(rendered, add_special_tokens=options.add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return text_of(self._backend, token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A fresh one, for one choice."""
        if skip_special_tokens:
            if self.is_byte_level:
                return ByteLevelDetokenizer(self.bytes_of, self.text_of)
            return WindowedDetokenizer(self.decode, self._is_skipped, self._is_byte)
        if self.is_byte_level:
            return ByteLevelDetokenizer(self.token_bytes, self._shown_text)
        return WindowedDetokenizer(partial(self.decode, skip_special_tokens=False), self._is_unknown, self._is_byte)

    def token(self, token_id: int) -> str | None:
        """One token as the vocabulary spells it; None: no such id."""
        spelled: str | None = self._backend.id_to_token(token_id)
        return spelled

    def token_text(self, token_id: int) -> str:
        """One token on its own, special tokens shown; `bytes:\\xe2\\x82` (as OpenAI) when it is no whole character."""
        text = self.decode([token_id], skip_special_tokens=False)
        if REPLACEMENT in text and (raw := self.token_bytes(token_id)).decode("utf-8", "replace") == text:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """One token's bytes, special tokens shown."""
        token = self._backend.id_to_token(token_id) or ""
        if self._is_byte(token_id):
            return bytes([int(token[3:5], 16)])
        if self.is_byte_level:
            return _bytes_of_token(token)
        return self.decode([token_id], skip_special_tokens=False).encode()

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._special_ids:
            return b""
        return _bytes_of_token(self._backend.id_to_token(token_id) or "")

    def _text_of(self, token_id: int) -> str | None:
        try:
            return self.bytes_of(token_id).decode()
        except UnicodeDecodeError:
            return None

    def _shown_text(self, token_id: int) -> str | None:
        try:
            return self.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            return None

    def _is_skipped(self, token_id: int) -> bool:
        return token_id in self._special_ids or self._is_unknown(token_id)

    def _is_unknown(self, token_id: int) -> bool:
        return self._backend.id_to_token(token_id) is None

    def _is_byte(self, token_id: int) -> bool:
        if not self._has_byte_fallback:
            return False
        token = self._backend.id_to_token(token_id) or ""
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _bytes_of_token(token: str) -> bytes:
    """What the byte-level decoder makes of one token; one with foreign characters (an added token) is itself."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer of a checkpoint directory; code that comes with a checkpoint is never run.

    Raises ValueError when there is none, or none with a `tokenizers` backend.
    """
    plain = try_load_plain(Path(directory))
    return Tokenizer(load_with_transformers(directory) if plain is None else plain)


def load_with_transformers(directory: Path | str) -> Any:
    """Any tokenizer that transformers knows. Raises as `load_tokenizer`."""
    from transformers import AutoTokenizer  # seconds, which most checkpoints need not wait for

    try:
        hf_tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"no tokenizer in {directory}: {str(error).splitlines()[0]}") from error
    if not isinstance(getattr(hf_tokenizer, "backend_tokenizer", None), tokenizers.Tokenizer):
        raise ValueError(f"the tokenizer in {directory} has no fast (tokenizer.json) form")
    return hf_tokenizer
