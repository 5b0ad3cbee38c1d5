"""Checks of ports and of the trace collector."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from alignserve_server.cli.check.deployment import Check, Deployment
from alignserve_server.cli.check.report import CheckWarning
from alignserve_server.errors import StartupError
from alignserve_server.host.daemon_thread import in_daemon_thread
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.observability.span_export import SpanExport
from alignserve_server.settings import is_loopback
from alignserve_server.workers.reserved_port import reserved_port

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")  # the first one wins
_DEFAULT_ENDPOINT = "http://localhost:4317"  # OpenTelemetry's, for gRPC
_OTLP_PORT = 4317
_COLLECTOR_SECONDS = 1.0


def network_checks(deployment: Deployment) -> Iterator[tuple[str, Check]]:
    """Yields the checks that the settings call for."""
    settings = deployment.settings
    yield "listen", listen
    if settings.metrics_listen is not None:
        yield "metrics_listen", listen_for_metrics
    if settings.http_listen is not None:
        yield "http_listen", listen_for_http
    if settings.tracing:
        yield "tracing", reach_collector


def listen(deployment: Deployment) -> str:
    """Holds the gRPC port."""
    settings = deployment.settings
    deployment.held.enter_context(reserved_port(settings.listen))
    if not is_loopback(settings.listen) and not settings.is_protected:
        raise CheckWarning(
            f"{settings.listen} is free, but other machines can reach it without TLS or authentication; set "
            "tls_certificate, tls_key and api_keys_file"
        )
    return f"{settings.listen} is free"


def listen_for_metrics(deployment: Deployment) -> str:
    """Serves the metrics page."""
    address = deployment.settings.metrics_listen
    assert address is not None  # noqa: S101 — otherwise not checked
    page = serve_metrics_page(address, CollectorRegistry(), lambda: "loading")
    deployment.held.callback(page.server_close)
    deployment.held.callback(page.shutdown)
    return f"{address} is free"


def listen_for_http(deployment: Deployment) -> str:
    """Holds the HTTP port."""
    address = deployment.settings.http_listen
    assert address is not None  # noqa: S101 — otherwise not checked
    for package in ("httptools", "orjson", "starlette", "uvicorn"):
        if find_spec(package) is None:
            raise StartupError(f"{package} is missing; pip install 'alignserve[server,http]'")
    deployment.held.enter_context(reserved_port(address, "--http-listen"))
    return f"{address} is free"


def reach_collector(_deployment: Deployment) -> str:
    """Prepares the export of spans, and connects to the collector."""
    SpanExport(version("alignserve-server"))
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), _DEFAULT_ENDPOINT)
    address = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        port = address.port or _OTLP_PORT
        asyncio.run(_reach(address.hostname or "", port))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise CheckWarning(
            f"spans are exported to {endpoint}, which does not accept connections ({reason}), so they are "
            f"lost; start the collector, or set {_ENDPOINTS[1]}"
        ) from error
    return f"spans are exported to {endpoint}, which accepts connections"


async def _reach(host: str, port: int) -> None:
    """Connects. Raises OSError, also if that takes too long, as finding the address may."""

    def connect() -> None:
        socket.create_connection((host, port), _COLLECTOR_SECONDS).close()

    await asyncio.wait_for(in_daemon_thread(connect), 2 * _COLLECTOR_SECONDS)
