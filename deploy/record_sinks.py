"""What the configuration asks to be told of every ended request, opened: the request log and the traces."""

from __future__ import annotations

import importlib.util

from pdserve.config import RouterConfig
from pdserve.exit import ExitCode, StartError
from router.background import BackgroundSink
from router.request_log import RequestLog

_TRACING = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def check_sinks(config: RouterConfig) -> None:
    """Whether they could be opened, before a model is loaded. StartError names the flag."""
    if config.request_log is not None:
        _open_log(config.request_log).close()
    if config.otlp_endpoint is not None:
        _check_tracing(config.otlp_endpoint)


def open_sinks(config: RouterConfig, model: str) -> list[BackgroundSink]:
    """Each with its thread running; `close` them when nothing ends any more. Raises as `check_sinks`.

    `model`: the name under which it is served.
    """
    sinks = []
    if config.request_log is not None:
        sinks.append(BackgroundSink("request_log", _open_log(config.request_log)))
    if config.otlp_endpoint is not None:
        _check_tracing(config.otlp_endpoint)
        from router.tracing import trace_sink  # loading it takes a third of a second

        sinks.append(trace_sink(config.otlp_endpoint, model))
    return sinks


def _open_log(path: str) -> RequestLog:
    try:
        return RequestLog(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(f"--request-log is {path}; {reason}", ExitCode.OUTPUT) from None


def _check_tracing(endpoint: str) -> None:
    for name in _TRACING:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # not even the package around it
            found = False
        if not found:
            raise StartError(
                f"--otlp-endpoint is {endpoint}; {name} is not installed: pip install 'pdserve[tracing]'",
                ExitCode.ENVIRONMENT,
            )
