"""What the front doors accept, and how they are set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pdserve.slo import Slo


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request and on one front door. Beyond a bound there is an error, never a silent clamp."""

    max_message_bytes: int = 4 << 20  # of a gRPC message and of an HTTP body
    max_header_bytes: int = 16 << 10  # of all HTTP headers together
    max_headers: int = 100
    max_metadata_bytes: int = 8 << 10  # of gRPC metadata; grpc's own default refuses at random between 8 and 16 KiB
    max_prompt_tokens: int = 131_072  # and at most the context less one
    max_stop: int = 4
    max_stop_chars: int = 128
    max_stop_token_ids: int = 128
    max_logit_bias: int = 300
    max_logprobs: int = 20
    max_id_chars: int = 128  # request id, tenant, model and class names
    max_temperature: float = 100.0
    max_priority: int = 1_000_000  # either way
    max_choices: int = 16  # n
    max_prompts: int = 64  # prompts in one HTTP request; with n, prompts * n
    max_messages: int = 4096  # of one conversation
    max_slo_s: float = 3600.0
    default_deadline_s: float = 600.0  # for a request that brings none
    max_deadline_s: float = 3600.0  # a later deadline is moved here
    max_concurrent_requests: int = 1024  # being served at once, over both doors
    max_streams_per_connection: int = 128
    body_timeout_s: float = 10.0  # for an HTTP body to arrive
    max_unread_s: float = 30.0  # a client that takes nothing for this long is cancelled
    max_inline_chars: int = 1 << 10  # longer text is tokenized on a thread; so much takes a millisecond at worst


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """What both front doors share."""

    limits: Limits = Limits()
    api_keys: Mapping[str, str] = field(default_factory=dict, repr=False)  # key -> tenant, empty: any; {}: open to all
    keyless_paths: frozenset[str] = frozenset({"/health", "/ready", "/dashboard"})  # HTTP; the last without data
    slo_classes: Mapping[str, Slo] = field(default_factory=lambda: {"default": Slo()})
    default_tenant: str = "default"
    allowed_origins: tuple[str, ...] = ()  # whose pages in a browser may call: CORS; "*": everyone's
    tool_call_parser: str | None = None  # of router.text.TOOL_CALL_PARSERS; None: requests may bring no tools
