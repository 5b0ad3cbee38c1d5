"""The page /metrics, and clients that do not behave."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.request import urlopen
from wsgiref.simple_server import WSGIServer

import pytest
from alignserve_server.errors import StartupError
from alignserve_server.metrics_page import serve_metrics_page
from prometheus_client import CollectorRegistry, Counter


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with one counter."""
    registry = CollectorRegistry()
    Counter("answers", "Answers.", registry=registry).inc(42)
    return registry


@pytest.fixture
def page(registry: CollectorRegistry) -> Iterator[WSGIServer]:
    """A page that disconnects silent clients almost at once."""
    server = serve_metrics_page("127.0.0.1:0", registry, idle_seconds=0.05)
    yield server
    server.shutdown()
    server.server_close()


def test_the_page_shows_the_registry(page: WSGIServer) -> None:
    """It is Prometheus' text format."""
    with urlopen(f"http://127.0.0.1:{page.server_port}/metrics") as response:
        text = response.read().decode()

    assert "answers_total 42.0" in text


@pytest.mark.timeout(30)
@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.0\r\nHost"])
def test_a_client_that_falls_silent_is_disconnected(
    page: WSGIServer, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    """Its thread ends, and the log stays free of tracebacks."""
    with socket.create_connection(("127.0.0.1", page.server_port)) as client:
        client.sendall(sent)

        answer = client.recv(1000)

    assert answer == b""
    assert capfd.readouterr().err == ""


def test_a_taken_port_is_an_error(page: WSGIServer, registry: CollectorRegistry) -> None:
    """Nothing is served silently elsewhere."""
    with pytest.raises(StartupError, match="in use"):
        serve_metrics_page(f"127.0.0.1:{page.server_port}", registry)
