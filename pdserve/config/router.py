"""What the router is told: its front doors, admission, the request's life, and whose keys open it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdserve.settings import address_problems, is_loopback, is_number, limits, setting, split_address


@dataclass(frozen=True, slots=True)
class SloClass:
    """A named pair of thresholds that requests may ask for."""

    name: str
    ttft_s: float | None = setting(None, "seconds to the first token", above=0.0, high=86400.0)
    tpot_s: float | None = setting(None, "seconds per output token after the first", above=0.0, high=86400.0)


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A key that speaks for one tenant only."""

    tenant: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """The front doors, admission and the request's life."""

    grpc: str = setting("127.0.0.1:50051", "where gRPC listens, HOST:PORT; port 0 picks a free one")
    http: str = setting("127.0.0.1:8000", "where OpenAI HTTP listens, HOST:PORT; port 0 picks a free one")
    served_model_name: str | None = setting(None, "name that clients use (default: MODEL)")
    api_key: tuple[str, ...] = setting(
        (), "clients must show it, or another one given, as a bearer token (or PDSERVE_API_KEY)", secret=True
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "whose pages in a browser may call the HTTP door (CORS); *: everyone's (default: nobody's)"
    )
    tool_call_parser: str | None = setting(
        None,
        "format in which the model calls tools by its own choice (default: it is given none to choose from)",
        choices=("hermes", "llama3_json", "mistral"),
    )
    insecure_bind: bool = setting(False, "allow listening beyond this machine without encryption")
    max_concurrent_requests: int = setting(1024, "requests open at once; one more is refused", low=1, high=1 << 20)
    default_deadline_s: float = setting(600.0, "deadline of a request that brings none", above=0.0, high=86400.0)
    max_deadline_s: float = setting(3600.0, "longer deadlines are cut to this", above=0.0, high=86400.0)
    local_prefill_max_tokens: int = setting(
        0,
        "a decode worker that lacks at most this many tokens of a prompt, the others being cached there, may compute "
        "them itself, without the trip (0: none does)",
        low=0,
        high=1 << 24,
    )
    drain_timeout_s: float = setting(10.0, "seconds that running requests get at shutdown", low=0.0, high=10.0)
    slo_ttft_s: float | None = setting(None, "default SLO: seconds to the first token", above=0.0, high=86400.0)
    slo_tpot_s: float | None = setting(None, "default SLO: seconds per later token", above=0.0, high=86400.0)
    request_log: str | None = setting(
        None, "file that gets a line of JSON for every request when it ends; - is standard output"
    )
    otlp_endpoint: str | None = setting(
        None, "OpenTelemetry collector, http(s)://HOST:PORT of its gRPC, that gets every request's spans"
    )
    slo_classes: tuple[SloClass, ...] = ()
    tenants: tuple[str, ...] = ()
    tenant_keys: tuple[TenantKey, ...] = ()

    def check(self) -> list[str]:
        problems = limits(self)
        for name in ("grpc", "http"):
            bad = address_problems(name, getattr(self, name))
            if not bad and not self.insecure_bind and not is_loopback(split_address(getattr(self, name))[0]):
                bad = [f"{name} is {getattr(self, name)}; beyond this machine it must be allowed by --insecure-bind"]
            problems += bad
        if not problems and split_address(self.grpc)[1] != 0 and split_address(self.grpc) == split_address(self.http):
            problems.append(f"grpc and http are both {self.grpc}; they must differ")
        problems += self._key_problems()
        if self.served_model_name is not None and not self.served_model_name.strip():
            problems.append("served_model_name is empty; it must have at least one character")
        deadline, longest = self.default_deadline_s, self.max_deadline_s
        if is_number(deadline) and is_number(longest) and deadline > longest:
            problems.append(f"default_deadline_s is {deadline}; it must be at most max_deadline_s, {longest}")
        endpoint = self.otlp_endpoint
        if isinstance(endpoint, str) and not _is_collector(endpoint):
            problems.append(f"otlp_endpoint is {endpoint!r}; it must be http(s)://HOST:PORT, as http://127.0.0.1:4317")
        if self.request_log == "":
            problems.append("request_log is empty; it must be a file's name, or -")
        for one in self.slo_classes:
            problems += [f"slo_classes.{one.name}.{problem}" for problem in limits(one)]
        return problems

    def _key_problems(self) -> list[str]:
        """Keys are shown in a header; one key speaks for one tenant."""
        problems = []
        keys = [*(("api_key", key) for key in self.api_key), *(("tenant_keys", one.key) for one in self.tenant_keys)]
        for name, key in keys:
            if not (key and key.isascii() and key.isprintable() and " " not in key):
                problems.append(f"{name} is hidden; it must be printable ASCII without spaces, at least one character")
        if len({key for _, key in keys}) != len(keys):
            problems.append("api_key is hidden; no key may be given twice")
        if any(not origin.strip() for origin in self.allowed_origins):
            problems.append("allowed_origins has an empty one; it must be * or like https://host")
        return problems


def _is_collector(endpoint: str) -> bool:
    """http(s)://HOST:PORT; without a port gRPC would go to 443, whatever the scheme."""
    scheme, _, address = endpoint.removesuffix("/").partition("://")
    return scheme in ("http", "https") and "/" not in address and not address_problems("", address)
