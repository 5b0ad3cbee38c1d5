"""The metrics port, with probes and misbehaving clients."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.request import urlopen
from wsgiref.simple_server import WSGIServer

import pytest
from alignserve_server.errors import StartupError
from alignserve_server.observability.metrics import STATES
from alignserve_server.observability.metrics_http import serve_metrics_page
from prometheus_client import CollectorRegistry, Counter, Gauge


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with one counter."""
    registry = CollectorRegistry()
    Counter("answers", "Answers.", registry=registry).inc(42)
    return registry


@pytest.fixture
def page(registry: CollectorRegistry) -> Iterator[WSGIServer]:
    """A page that disconnects silent clients almost immediately."""
    server = serve_metrics_page("127.0.0.1:0", registry, lambda: "serving", idle_seconds=0.05)
    yield server
    server.shutdown()
    server.server_close()


def test_the_page_shows_the_registry(page: WSGIServer) -> None:
    """The page is in the Prometheus text format."""
    with urlopen(f"http://127.0.0.1:{page.server_port}/metrics") as response:
        text = response.read().decode()

    assert "answers_total 42.0" in text


def asked(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Returns the status, headers and body of a response."""
    connection = HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name[]=answers_total", "/healthz", "/readyz?verbose"])
def test_head_is_get_without_the_body(page: WSGIServer, path: str) -> None:
    """Some probes and load balancers use it."""
    status, headers, body = asked(page.server_port, path)
    head = asked(page.server_port, path, "HEAD")

    assert (status, head[0], head[2]) == (200, 200, b"")
    assert head[1]["Content-Length"] == headers["Content-Length"] == str(len(body))
    assert head[1]["Content-Type"] == headers["Content-Type"]


@pytest.mark.parametrize(
    "path", ["/", "/metric", "/metrics/", "/metrics2", "/Metrics", "/healthz/x", "/favicon.ico"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_any_other_path_is_not_found(page: WSGIServer, path: str, method: str) -> None:
    """Otherwise a probe with a typo in its path would always succeed. The response lists the valid paths."""
    status, _, body = asked(page.server_port, path, method)

    assert status == 404
    assert (b"/metrics, /healthz, /readyz" in body) == (method != "HEAD")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_other_methods_are_refused(page: WSGIServer, path: str) -> None:
    """The response lists the allowed ones."""
    status, headers, _ = asked(page.server_port, path, "POST")

    assert status == 405
    assert "GET" in headers["Allow"]


@pytest.mark.parametrize("state", STATES)
def test_only_a_serving_server_is_ready(registry: CollectorRegistry, state: str) -> None:
    """The body is its state; it is healthy in every state."""
    server = serve_metrics_page("127.0.0.1:0", registry, lambda: state)

    ready, alive = asked(server.server_port, "/readyz"), asked(server.server_port, "/healthz")
    server.shutdown()
    server.server_close()

    assert (ready[0], ready[2]) == (200 if state == "serving" else 503, f"{state}\n".encode())
    assert (alive[0], alive[2]) == (200, b"ok\n")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.0\r\nHost"])
def test_a_silent_client_is_disconnected(
    page: WSGIServer, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    """Its thread ends, and no traceback is logged."""
    with socket.create_connection(("127.0.0.1", page.server_port)) as client:
        client.sendall(sent)

        answer = client.recv(1000)

    assert answer == b""
    assert capfd.readouterr().err == ""


def test_a_port_in_use_is_an_error(page: WSGIServer, registry: CollectorRegistry) -> None:
    """The server does not silently use another port."""
    with pytest.raises(StartupError, match="in use"):
        serve_metrics_page(f"127.0.0.1:{page.server_port}", registry, lambda: "serving")


@pytest.fixture
def patient(registry: CollectorRegistry) -> Iterator[WSGIServer]:
    """A page with a long timeout for silent clients."""
    server = serve_metrics_page("127.0.0.1:0", registry, lambda: "serving", idle_seconds=600)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.timeout(30)
def test_stuck_clients_are_limited_and_lock_no_one_out(patient: WSGIServer) -> None:
    """If there are too many, the oldest are disconnected. Others get the page, and it can be stopped."""
    threads = threading.active_count()
    with ExitStack() as stack:
        address = ("127.0.0.1", patient.server_port)
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
        with urlopen(f"http://127.0.0.1:{patient.server_port}/metrics") as response:
            text = response.read().decode()
        oldest_read = clients[0].recv(1000)
        more_threads = threading.active_count() - threads
        patient.shutdown()

    assert "answers_total 42.0" in text
    assert oldest_read == b""
    assert more_threads < 50


@pytest.mark.timeout(30)
def test_a_client_that_does_not_read_is_disconnected(
    registry: CollectorRegistry, page: WSGIServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its thread ends, and nothing is printed: printing may block too."""
    label = "x" * 1_000_000
    counter = Counter("long", "Long.", ["label"], registry=registry)
    for number in range(20):  # more than the buffers of a connection hold
        counter.labels(f"{number}{label}")
    threads = threading.active_count()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(("127.0.0.1", page.server_port))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")

        while client.recv(1, socket.MSG_PEEK) == b"":
            pass
        while threading.active_count() > threads:
            pass

    assert capfd.readouterr().err == ""


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Keeps this process from opening more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as last:  # noqa: PTH123 — a device
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.timeout(30)
def test_without_a_file_descriptor_the_page_waits(page: WSGIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would try to accept in a busy loop, and slow down the server's threads."""
    accept, attempts = page.get_request, threading.Semaphore(0)
    monkeypatch.setattr(page, "get_request", lambda: (attempts.release(), accept())[1])
    with socket.socket() as client:
        with no_descriptor_left():
            client.connect(("127.0.0.1", page.server_port))
            began = time.monotonic()
            for _ in range(4):
                attempts.acquire()
            seconds = time.monotonic() - began
        end = client.recv(1000)

    assert seconds > 0.25
    assert end == b""  # accepted in the end, and disconnected because it was silent


@pytest.mark.timeout(30)
def test_a_metric_that_fails_is_logged(
    registry: CollectorRegistry, page: WSGIServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The scraper gets an error, and the reason is logged."""
    Gauge("broken", "Broken.", registry=registry).set_function(lambda: 1 / 0)

    with pytest.raises(HTTPError, match="500"):
        urlopen(f"http://127.0.0.1:{page.server_port}/metrics")

    output = capfd.readouterr()
    assert "metrics_scrape_failed" in output.out  # where structlog prints if it is not configured
    assert output.err == ""
