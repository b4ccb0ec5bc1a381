"""Every request as OpenTelemetry spans, sent by OTLP over gRPC. Importing it needs the extra `tracing`."""

from router.tracing.exporter import trace_sink

__all__ = ["trace_sink"]
