"""API keys, and for whom each of them speaks."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from pdserve.errors import PermissionDenied, Unauthenticated


class KeyRing:
    """The keys of both front doors; without any, everyone is let in."""

    def __init__(self, tenants: Mapping[str, str]) -> None:
        """`tenants`: key -> the tenant that it speaks for, empty for any."""
        self._tenants = [(f"Bearer {key}".encode(), tenant) for key, tenant in tenants.items()]

    @property
    def is_open(self) -> bool:
        return not self._tenants

    def tenant_of(self, authorization: bytes) -> str:
        """The tenant that this header speaks for, empty for any. Raises Unauthenticated.

        Every key is compared, so that the time tells nothing.
        """
        found = [tenant for expected, tenant in self._tenants if hmac.compare_digest(authorization, expected)]
        if not found and self._tenants:
            raise Unauthenticated("an API key is needed: `Authorization: Bearer KEY`")
        return found[0] if found else ""


def tenant_for(key_tenant: str, asked: str) -> str:
    """The tenant of a request that names one, or none. Raises PermissionDenied: the key is another's."""
    if key_tenant and asked and asked != key_tenant:
        raise PermissionDenied("the API key belongs to another tenant", field="tenant")
    return key_tenant or asked
