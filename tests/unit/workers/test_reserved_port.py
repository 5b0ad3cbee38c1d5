"""A port that several processes share, and nobody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from alignserve_server.errors import StartupError
from alignserve_server.workers.reserved_port import reserved_port

HOSTS = ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::]"]


@pytest.fixture
def port() -> Iterator[int]:
    """A reserved port of 127.0.0.1."""
    with reserved_port("127.0.0.1:0") as port:
        yield port


def listening(port: int, *options: int) -> socket.socket:
    """Listens at a port of 127.0.0.1, as servers do."""
    server = socket.socket()
    for option in (socket.SO_REUSEADDR, *options):
        server.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        server.bind(("127.0.0.1", port))
        server.listen()
    except OSError:
        server.close()
        raise
    return server


@pytest.mark.parametrize("host", HOSTS)
def test_port_0_reserves_a_free_one(host: str) -> None:
    """Names and addresses of both kinds can be reserved."""
    with reserved_port(f"{host}:0") as port:
        assert port > 0


@pytest.mark.parametrize("host", HOSTS)
def test_a_port_is_reserved_once(host: str) -> None:
    """A second supervisor is refused before any worker of the first listens."""
    with (
        reserved_port(f"{host}:0") as port,
        pytest.raises(StartupError, match=r"in use.*--listen"),
        reserved_port(f"{host}:{port}"),
    ):
        pass


def test_a_server_that_does_not_share_is_refused(port: int) -> None:
    """A plain server cannot take a reserved port."""
    with pytest.raises(OSError, match="in use"):
        listening(port)


def test_a_port_with_a_server_cannot_be_reserved() -> None:
    """Nor can a supervisor take that of a plain server."""
    with (
        listening(0) as server,
        pytest.raises(StartupError, match="in use"),
        reserved_port(f"127.0.0.1:{server.getsockname()[1]}"),
    ):
        pass


def test_a_port_with_workers_of_another_cannot_be_reserved() -> None:
    """Listening with SO_REUSEPORT does not open a port to strangers."""
    with (
        listening(0, socket.SO_REUSEPORT) as worker,
        pytest.raises(StartupError, match="in use"),
        reserved_port(f"127.0.0.1:{worker.getsockname()[1]}"),
    ):
        pass


def test_a_reserved_port_receives_nothing(port: int) -> None:
    """Until a worker listens, connections are refused rather than left waiting."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_workers_share_a_reserved_port(port: int) -> None:
    """Two can listen with SO_REUSEPORT, and connections reach them."""
    with listening(port, socket.SO_REUSEPORT), listening(port, socket.SO_REUSEPORT):
        socket.create_connection(("127.0.0.1", port)).close()


def test_connections_that_are_still_closing_do_not_matter() -> None:
    """A server can be replaced at once, though its port has connections in TIME_WAIT."""
    with listening(0) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()
        client.recv(1)
        client.close()

    with reserved_port(f"127.0.0.1:{port}") as reserved:
        assert reserved == port


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_an_address_of_another_machine_is_an_error(listen: str) -> None:
    """The message names it and the flag."""
    with pytest.raises(StartupError, match=f"{listen}: .*--listen"), reserved_port(listen):
        pass
