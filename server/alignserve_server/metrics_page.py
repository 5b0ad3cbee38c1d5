"""The page /metrics over HTTP, served by threads of its own, so that a busy event loop does not delay it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from alignserve_server.errors import StartupError
from alignserve_server.settings import host_and_port

_IDLE_SECONDS = 10.0


def serve_metrics_page(
    listen: str, registry: CollectorRegistry, *, idle_seconds: float = _IDLE_SECONDS
) -> WSGIServer:
    """Starts to serve the registry's metrics; `shutdown` and `server_close` of the result end it.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        registry: What is shown.
        idle_seconds: A client that is silent for longer is disconnected.

    Raises:
        StartupError: The port is taken or the address is not this machine's.
    """
    try:
        server = _bound(*host_and_port(listen), registry, idle_seconds)
    except OSError as error:
        raise StartupError(
            f"cannot serve metrics on {listen}: {error.strerror}; choose another "
            "address with --metrics-listen, or --no-metrics"
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _bound(host: str, port: int, registry: CollectorRegistry, idle_seconds: float) -> WSGIServer:
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Server(ThreadingWSGIServer):
        address_family = family

    class Handler(_Handler):
        timeout = idle_seconds  # or each connection that sends nothing would hold a thread for good

    return make_server(host, port, make_wsgi_app(registry), Server, Handler)


class _Handler(WSGIRequestHandler):
    def handle(self) -> None:
        with suppress(TimeoutError, ConnectionError):  # else a traceback for each client that leaves
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — named by wsgiref
        """Logs nothing: scrapes are no events."""
