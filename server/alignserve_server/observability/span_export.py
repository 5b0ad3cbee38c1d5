"""Exports spans to a collector with OTLP."""

from __future__ import annotations

import os
import socket

from opentelemetry.trace import Tracer

from alignserve_server.errors import StartupError


class SpanExport:
    """Exports spans with OTLP.

    OpenTelemetry's standard variables, `OTEL_*`, set the endpoint, the sampling ratio and the service's name.
    """

    def __init__(self, version: str) -> None:
        """Prepares the export.

        Raises:
            StartupError: The extra `otel` is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise StartupError(
                f"tracing needs {error.name}; install it with pip install 'alignserve[server,otel]'"
            ) from error
        own = {
            "service.name": "alignserve",
            "service.version": version,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer: Tracer = self._provider.get_tracer("alignserve", version)

    def flush(self) -> None:
        """Exports the remaining spans; takes long if the collector is unreachable."""
        self._provider.force_flush()
