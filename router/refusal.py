"""A request that the front refused, as far as it is known: for the count of what was rejected."""

from __future__ import annotations

from pdserve.errors import RequestError
from pdserve.sampling import SamplingParams
from pdserve.slo import Slo
from router.interface import RouterRequest
from router.limits import FrontConfig
from router.validation import RequestDraft, resolve_slo, resolve_tenant

_MAX_ID_CHARS = 128  # an id that is refused for its length is still shown


def refused(draft: RequestDraft, received_s: float, config: FrontConfig) -> RouterRequest:
    """Without a prompt; class and tenant as they would have been, defaults where they are at fault."""
    try:
        slo, tenant = resolve_slo(draft.slo, config), resolve_tenant(draft.tenant, config)
    except RequestError:
        slo, tenant = config.slo_classes.get("default", Slo()), config.default_tenant
    left_s = config.limits.default_deadline_s if draft.time_left_s is None else draft.time_left_s
    return RouterRequest(
        request_id=_shown(draft.request_id), prompt_token_ids=(), sampling=SamplingParams(max_tokens=1), slo=slo,
        priority=draft.priority, tenant=tenant, received_s=received_s, deadline_s=received_s + left_s,
        trace_parent=draft.trace_parent,
    )  # fmt: skip


def _shown(request_id: str) -> str:
    """As much of it as logs and traces can take: JSON may spell half a surrogate, which is no text."""
    return request_id[:_MAX_ID_CHARS].encode(errors="replace").decode()
