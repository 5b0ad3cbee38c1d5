"""The page /metrics over HTTP, served by threads of its own, so that a busy event loop does not delay it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

_IDLE_SECONDS = 10.0


def serve_metrics_page(
    host: str, port: int, registry: CollectorRegistry, *, idle_seconds: float = _IDLE_SECONDS
) -> WSGIServer:
    """Starts to serve the registry's metrics; `shutdown` and `server_close` of the result end it.

    Args:
        host: Name or address, IPv4 or IPv6.
        port: 0 takes a free one.
        registry: What is shown.
        idle_seconds: A client that is silent for longer is disconnected.

    Raises:
        OSError: The port is taken or the address is not this machine's.
    """
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Server(ThreadingWSGIServer):
        address_family = family

    class Handler(_Handler):
        timeout = idle_seconds  # or each connection that sends nothing would hold a thread for good

    server = make_server(host, port, make_wsgi_app(registry), Server, Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


class _Handler(WSGIRequestHandler):
    def handle(self) -> None:
        with suppress(TimeoutError, ConnectionError):  # else a traceback for each client that leaves
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — named by wsgiref
        """Logs nothing: scrapes are no events."""
