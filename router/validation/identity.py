"""Who asks, for what, under which name."""

from __future__ import annotations

from pdserve.errors import NotFound, RequestError
from pdserve.ids import new_request_id
from router.interface import ModelCard
from router.limits import FrontConfig, Limits


def check_name(field: str, value: str, limits: Limits) -> None:
    """A name is printable ASCII of bounded length. Raises RequestError; the value itself is never repeated."""
    if len(value) > limits.max_id_chars:
        raise RequestError(f"{field} has {len(value):,} characters, limit {limits.max_id_chars}", field=field)
    if not all(" " <= character <= "~" for character in value):
        raise RequestError(f"{field} may hold printable ASCII only", field=field)


def resolve_request_id(request_id: str, limits: Limits) -> str:
    """The client's id, or a fresh one. Raises RequestError for one that could be mistaken for a path, or worse."""
    if not request_id:
        return new_request_id()
    check_name("request_id", request_id, limits)
    if "/" in request_id or "\\" in request_id or request_id.strip(". ") == "":
        raise RequestError("request_id may not look like a path (no / and \\, not only dots)", field="request_id")
    return request_id


def check_model(model: str, card: ModelCard, limits: Limits) -> None:
    """Empty is the served one. Raises NotFound for another."""
    if model and model != card.served_name:
        check_name("model", model, limits)
        raise NotFound(f"model {model!r} is not served; {card.served_name!r} is", field="model")


def resolve_tenant(tenant: str, config: FrontConfig) -> str:
    """The tenant's name, the default one when empty."""
    check_name("tenant", tenant, config.limits)
    return tenant or config.default_tenant
