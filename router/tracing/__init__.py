"""Every request as OpenTelemetry spans, sent by OTLP over gRPC. Importing it needs the extra `tracing`."""

from router.tracing.exporter import SpanWriter, span_writer

__all__ = ["SpanWriter", "span_writer"]
