"""The metrics port: /metrics, and /healthz and /readyz for HTTP probes.

It is served by separate threads, so that a busy event loop does not delay it.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TextIO, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from alignserve_server.errors import StartupError
from alignserve_server.host.addresses import present_host
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.probes import Probe, probes
from alignserve_server.settings import host_and_port

_log = get_logger(__name__)

_App: TypeAlias = "Callable[[Any, Any], Iterable[bytes]]"

_IDLE_SECONDS = 10.0
_MAX_CONNECTIONS = 32
_RETRY_SECONDS = 0.1
_POLL_SECONDS = 0.05  # each stop waits for socketserver's next check, which by default is every 0.5 s


def serve_metrics_page(
    listen: str,
    registry: CollectorRegistry,
    state: Callable[[], str],
    *,
    idle_seconds: float = _IDLE_SECONDS,
) -> WSGIServer:
    """Starts to serve metrics and probes; `shutdown` and `server_close` of the result end it.

    Args:
        listen: HOST:PORT; port 0 picks a free one.
        registry: The metrics.
        state: Returns the state of the server, one of `metrics.STATES`; only `serving` is ready.
        idle_seconds: A client that neither sends nor reads for this long is disconnected.

    Raises:
        StartupError: The port is in use or the address is not one of this machine.
    """
    try:
        app = _logging_failures(_without_body_of_head(_pages(registry, state)))
        server = _bound(*host_and_port(listen), app, idle_seconds)
    except OSError as error:
        raise StartupError(
            f"cannot serve metrics on {listen}: {error.strerror}; choose another "
            "address with --metrics-listen, or --metrics-listen none"
        ) from error
    threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True).start()
    return server


def _bound(host: str, port: int, app: _App, idle_seconds: float) -> WSGIServer:
    host = present_host(host)
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Server(_Server):
        address_family = family

        def server_bind(self) -> None:
            if family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as in gRPC: IPv4 too
            super().server_bind()

    class Handler(_Handler):
        timeout = idle_seconds  # otherwise a connection that sends nothing would occupy a thread permanently

    return make_server(host, port, app, Server, Handler)


def _pages(registry: CollectorRegistry, state: Callable[[], str]) -> _App:
    """Returns an app that serves each path's page."""
    pages = {
        "/metrics": make_wsgi_app(registry),
        **{path: _text(probe) for path, probe in probes(state).items()},
    }
    missing = _text(lambda: (HTTPStatus.NOT_FOUND, f"page not found; use one of {', '.join(pages)}"))
    not_allowed = _text(lambda: (HTTPStatus.METHOD_NOT_ALLOWED, "use GET or HEAD"), ("Allow", "GET, HEAD"))

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        page = pages.get(environ["PATH_INFO"], missing)
        if page is not missing and environ["REQUEST_METHOD"] != "GET":
            page = not_allowed
        return page(environ, start_response)

    return app


def _text(answer: Probe, *headers: tuple[str, str]) -> _App:
    """Returns an app that responds with a status and a line of text."""

    def text_app(_: Any, start_response: Any) -> Iterable[bytes]:
        status, line = answer()
        content = ("Content-Type", "text/plain; charset=utf-8")
        start_response(f"{status.value} {status.phrase}", [content, ("Cache-Control", "no-store"), *headers])
        return [f"{line}\n".encode()]

    return text_app


def _without_body_of_head(app: _App) -> _App:
    """Makes HEAD requests return what GET does, without the body."""

    def app_with_head(environ: Any, start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return app(environ, start_response)
        answered: list[Any] = []
        body = b"".join(
            app({**environ, "REQUEST_METHOD": "GET"}, lambda *answer, **_: answered.extend(answer))
        )
        status, headers = answered[:2]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return []

    return app_with_head


def _logging_failures(app: _App) -> _App:
    """Logs exceptions of the app, for example from a metric's function; the handler would print them."""

    def logging_app(environ: Any, start_response: Any) -> Iterable[bytes]:  # Any: WSGI's types, passed on
        try:
            return app(environ, start_response)
        except Exception:
            _log.exception("metrics_scrape_failed")
            raise

    return logging_app


class _Server(ThreadingWSGIServer):
    """Serves each connection in a thread. If there are too many, the oldest connection is closed.

    A scrape takes milliseconds, so the client that has been connected for longest is stuck or malicious.
    """

    request_queue_size = 128  # with fewer, the kernel rejects scrapers while a flood of others is accepted

    def __init__(self, *arguments: Any) -> None:  # Any: those of socketserver
        super().__init__(*arguments)
        self._connections: dict[socket.socket, None] = {}  # oldest first
        self._lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:  # no file descriptors left: the next attempt follows immediately and fails too
            time.sleep(_RETRY_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._connections) >= _MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):  # its client may have disconnected
                    oldest.shutdown(socket.SHUT_RDWR)  # unblocks its thread
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 — socketserver passes it
        """Logs the error, which would otherwise be printed to standard error and could block."""
        _log.exception("metrics_scrape_failed")


class _Handler(WSGIRequestHandler):
    def handle(self) -> None:
        with suppress(TimeoutError, ConnectionError):  # each would print a traceback of its client
            super().handle()

    def get_stderr(self) -> TextIO:
        """Discards tracebacks: of clients that do not read, and of errors that are logged already."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — named by wsgiref
        """Does nothing: scrapes are not worth logging."""
