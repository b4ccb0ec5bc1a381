"""Conversations, and the checkpoint's template over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that a message may have; templates build special tokens from them, so the set is closed."""


class ChatTemplateError(ValueError):
    """There is no template, or it refuses the messages."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str
    name: str | None = None

    def texts(self) -> tuple[str, ...]:
        """Everything here that a client wrote freely."""
        return (self.content,) if self.name is None else (self.content, self.name)

    def map_texts(self, change: Callable[[str], str]) -> ChatMessage:
        return ChatMessage(self.role, change(self.content), None if self.name is None else change(self.name))

    def as_dict(self) -> dict[str, str]:
        """As templates expect it."""
        plain = {"role": self.role, "content": self.content}
        return plain if self.name is None else plain | {"name": self.name}


def render_chat(hf_tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """The conversation as text, up to where the assistant answers. Raises ChatTemplateError."""
    try:
        rendered: str = hf_tokenizer.apply_chat_template(
            [message.as_dict() for message in messages], tokenize=False, add_generation_prompt=True
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        # Templates speak to clients through raise_exception: "roles must alternate", ...
        raise ChatTemplateError(f"the chat template refuses the messages: {str(error)[:200]}") from error
    return rendered
