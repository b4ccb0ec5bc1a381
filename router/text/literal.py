"""Encoding text in which some special tokens are real (the template's) and some are only spelled (a client's).

    protect(content)   breaks what would read as a special token with a mark that no client can know
    ... the template is rendered over the protected contents ...
    encode(rendered)   special tokens that are whole become tokens; the mark goes; what it broke is plain text

The template sees contents as they are but for the marks, so trimming, splitting and conditions in it keep working.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

import tokenizers

from router.text.backend import ids_of


class LiteralEncoder:
    """Over one tokenizer. Safe to use from several threads at once."""

    def __init__(self, backend: tokenizers.Tokenizer, special: Mapping[int, tokenizers.AddedToken]) -> None:
        self._backend = backend
        self._special = {token.content: (index, token) for index, token in special.items() if len(token.content) > 1}
        nonce = secrets.token_hex(16)
        self._mark = f"\ue000{nonce}\ue001"
        self._alias = f"\ue002{nonce}:%d\ue003"
        longest_first = sorted(self._special, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._heads = frozenset(text[:n] for text in self._special for n in range(1, len(text)))
        self._tails = frozenset(text[n:] for text in self._special for n in range(1, len(text)))
        self._max_edge = max(map(len, self._special), default=1) - 1
        # A token that is looked for after normalization has spellings that cannot be listed: then nothing is harmless.
        self._always = backend.normalizer is not None and any(token.normalized for token in special.values())
        self._plain, self._id_of_alias = self._plain_tokenizer()

    def is_dangerous(self, content: str) -> bool:
        """Whether the content spells a special token, or could together with what stands beside it."""
        stripped = content.strip()
        return (
            self._always
            or bool(self._whole.search(content))
            or any(map(self._has_open_start, (content, stripped)))
            or any(map(self._has_open_end, (content, stripped)))
        )

    def protect(self, content: str) -> str:
        """The content with a mark wherever it would be read as (part of) a special token."""
        body = content
        while self._whole.search(body):  # again, because matches may overlap; each mark breaks one for good
            body = self._whole.sub(lambda match: match[0][0] + self._mark + match[0][1:], body)
        # A template may trim white space, so both the bare and the full edges count.
        stripped = body.strip()
        lead, trail = body[: len(body) - len(body.lstrip())], body[len(body.rstrip()) :] if stripped else ""
        start = self._mark if self._has_open_start(stripped) or self._has_open_start(body) else ""
        end = self._mark if self._has_open_end(stripped) or self._has_open_end(body) else ""
        return f"{lead}{start}{stripped}{end}{trail}"

    def encode(self, rendered: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text with marks; no BOS or EOS is added beyond what is written, unless asked for."""
        aliased = self._whole.sub(lambda match: self._alias % self._special[match[0]][0], rendered)
        ids = ids_of(self._plain, aliased.replace(self._mark, ""), add_special_tokens=add_special_tokens)
        return [self._id_of_alias.get(index, index) for index in ids]

    def _has_open_start(self, text: str) -> bool:
        """Whether a special token that began before could end at the start of this text."""
        return any(text[:n] in self._tails for n in range(1, min(self._max_edge, len(text)) + 1))

    def _has_open_end(self, text: str) -> bool:
        """Whether a special token could begin at the end of this text."""
        return any(text[-n:] in self._heads for n in range(1, min(self._max_edge, len(text)) + 1))

    def _plain_tokenizer(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """A copy that reads special tokens as text but knows each under an alias, and alias id -> id."""
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        copy.encode_special_tokens = True
        id_of_alias = {}
        for index, token in self._special.values():
            alias = tokenizers.AddedToken(
                self._alias % index,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,
            )
            copy.add_tokens([alias])
            alias_id = copy.token_to_id(alias.content)
            assert alias_id is not None
            id_of_alias[alias_id] = index
        return copy, id_of_alias
