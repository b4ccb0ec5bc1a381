"""Everything the router knows about text; workers see token ids only."""

from router.text.chat import ROLES, ChatMessage, ChatOptions, ChatTemplateError, ToolCall
from router.text.detokenizer import Detokenizer
from router.text.output import OutputText, TextDelta
from router.text.stop import StopMatcher
from router.text.tokenizer import Tokenizer, load_tokenizer
from router.text.tool_calls import TOOL_CALL_PARSERS, CalledTool, ForcedCallsParser, ToolCallParser

__all__ = [
    "ROLES",
    "TOOL_CALL_PARSERS",
    "CalledTool",
    "ChatMessage",
    "ChatOptions",
    "ChatTemplateError",
    "Detokenizer",
    "ForcedCallsParser",
    "OutputText",
    "StopMatcher",
    "TextDelta",
    "Tokenizer",
    "ToolCall",
    "ToolCallParser",
    "load_tokenizer",
]
