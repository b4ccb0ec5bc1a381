"""The router in this process: core, desk, gRPC and HTTP doors. Importing this loads the tokenizer library (seconds)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from deploy.model_card import read_model_card
from deploy.record_sinks import open_sinks
from deploy.resolve import ResolvedServe
from deploy.safetensors_headers import BadCheckpoint
from pdserve.clock import MonotonicClock
from pdserve.config import RouterConfig
from pdserve.exit import ExitCode, StartError
from pdserve.settings import split_address
from pdserve.slo import Slo
from router.background import LostRecords
from router.core.config import CoreConfig
from router.core.core import Core
from router.dashboard import CoreSource, LiveView, Planned
from router.generation import FrontDesk
from router.grpc_front import GrpcFront, serve_grpc
from router.interface import ModelCard
from router.limits import FrontConfig, Limits
from router.text import Tokenizer, load_tokenizer
from scheduling.routing import RoutingConfig

log = logging.getLogger(__name__)

FRONT_STOP_S = 1.0  # for the last words of ended requests to leave
CONNECT_TIMEOUT_S = 30.0  # for the sessions to workers that are warm


class HttpDoor(Protocol):
    """A running HTTP server."""

    @property
    def port(self) -> int: ...

    async def stop(self, grace_s: float) -> None: ...


class LivePage(Protocol):
    """A running dashboard."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelText:
    """What of a model the router needs, loaded."""

    tokenizer: Tokenizer
    card: ModelCard


def load_text(resolved: ResolvedServe) -> ModelText:
    """Tokenizer and model card; may take seconds, so call it in a thread. StartError when either is broken."""
    try:
        card = read_model_card(resolved.checkpoint, resolved.served_name, resolved.max_model_len)
        return ModelText(load_tokenizer(resolved.checkpoint.path), card)
    except (BadCheckpoint, ValueError) as error:
        raise StartError(str(error), ExitCode.MODEL) from None


class FrontDoors:
    """Core, desk and doors: `open`, then `drain`, then always `close`."""

    def __init__(
        self,
        config: RouterConfig,
        text: ModelText,
        addresses: Sequence[str],
        secret: str,
        planned: Planned | None = None,
    ) -> None:
        """`planned` is for the dashboard: what the cluster should be."""
        clock = MonotonicClock()
        front = front_config(config)
        names = CoreConfig(
            max_in_flight=config.max_concurrent_requests,
            slos=tuple(front.slo_classes.values()),
            tenants=frozenset({front.default_tenant, *config.tenants, *(one.tenant for one in config.tenant_keys)}),
            routing=RoutingConfig(local_prefill_max_tokens=config.local_prefill_max_tokens),
        )
        self._config = config
        self._view = LiveView(front.slo_classes, text.card.served_name, clock, planned)
        self._sinks = open_sinks(config, text.card.served_name)
        self.core = Core(addresses, secret, names, clock=clock, sinks=[self._view, *self._sinks])
        self.core.metrics.registry.register(LostRecords(self._sinks))
        self.desk = FrontDesk(self.core, text.card, text.tokenizer, front, clock)
        self._grpc: GrpcFront | None = None
        self._http: HttpDoor | None = None
        self._dashboard: LivePage | None = None

    async def open(self) -> None:
        """Connect to every worker, then listen. StartError when a worker does not answer or an address is taken."""
        await self.core.start()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self.core.wait_ready()
        except TimeoutError:
            raise StartError(f"the workers did not answer the router within {CONNECT_TIMEOUT_S:g} s") from None
        try:
            self._grpc = await serve_grpc(self.desk, self._config.grpc)
            self._http = await self._serve_http()
        except OSError as error:
            raise StartError(str(error), ExitCode.ENVIRONMENT) from None

    @property
    def grpc_address(self) -> str:
        assert self._grpc is not None
        return _with_port(self._config.grpc, self._grpc.port)

    @property
    def http_address(self) -> str | None:
        return None if self._http is None else _with_port(self._config.http, self._http.port)

    async def drain(self) -> None:
        """Refuse new requests, let the running ones end; whoever calls sets the deadline."""
        self.desk.drain()
        await self.desk.idle()

    async def close(self) -> None:
        """End what still runs, each with an answer, and stop listening. Safe to repeat."""
        await self.core.drain(0.0)
        if self._dashboard is not None:
            await self._dashboard.close()
        doors = [door for door in (self._grpc, self._http) if door is not None]
        await asyncio.gather(*(door.stop(FRONT_STOP_S) for door in doors))
        self._grpc = self._http = None
        await self.core.close()
        self.desk.close()
        for sink in self._sinks:
            await asyncio.to_thread(sink.close)
        self._sinks = []

    async def _serve_http(self) -> HttpDoor | None:
        """The HTTP door, or None where its libraries are not installed: gRPC serves alone then."""
        try:
            from router.dashboard.routes import Dashboard
            from router.http_front import build_app, serve_http
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in {"starlette", "uvicorn"}:
                raise
            log.warning("no HTTP: %s is not installed", error.name)
            return None
        dashboard = Dashboard(self._view, CoreSource(self.core), self.core.clock)
        dashboard.start()
        self._dashboard = dashboard
        return await serve_http(build_app(self.desk, dashboard.routes), *split_address(self._config.http))


def front_config(config: RouterConfig) -> FrontConfig:
    """The doors' settings out of the router's."""
    classes = {"default": Slo("default", config.slo_ttft_s, config.slo_tpot_s)}
    classes |= {one.name: Slo(one.name, one.ttft_s, one.tpot_s) for one in config.slo_classes}
    limits = replace(
        Limits(),
        default_deadline_s=config.default_deadline_s,
        max_deadline_s=config.max_deadline_s,
        max_concurrent_requests=config.max_concurrent_requests,
    )
    return FrontConfig(
        limits=limits,
        api_keys=dict.fromkeys(config.api_key, "") | {one.key: one.tenant for one in config.tenant_keys},
        slo_classes=classes,
        allowed_origins=config.allowed_origins,
        tool_call_parser=config.tool_call_parser,
    )


def _with_port(address: str, port: int) -> str:
    host, _ = split_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
