"""Everything the router knows about text; workers see token ids only."""

from router.text.chat import ROLES, ChatMessage, ChatTemplateError
from router.text.detokenizer import Detokenizer
from router.text.output import OutputText, TextDelta
from router.text.stop import StopMatcher
from router.text.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "ROLES",
    "ChatMessage",
    "ChatTemplateError",
    "Detokenizer",
    "OutputText",
    "StopMatcher",
    "TextDelta",
    "Tokenizer",
    "load_tokenizer",
]
