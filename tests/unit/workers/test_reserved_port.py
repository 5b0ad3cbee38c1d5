"""A port that only the processes of one server share."""

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
    """Listens on a port of 127.0.0.1, as a server does."""
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
    """Host names, IPv4 and IPv6 addresses can be reserved."""
    with reserved_port(f"{host}:0") as port:
        assert port > 0


@pytest.mark.parametrize("host", HOSTS)
def test_a_port_can_be_reserved_only_once(host: str) -> None:
    """A second supervisor is refused even if no worker of the first one is listening yet."""
    with (
        reserved_port(f"{host}:0") as port,
        pytest.raises(StartupError, match=r"in use.*--listen"),
        reserved_port(f"{host}:{port}"),
    ):
        pass


def test_a_server_without_reuseport_is_refused(port: int) -> None:
    """An ordinary server cannot use a reserved port."""
    with pytest.raises(OSError, match="in use"):
        listening(port)


def test_a_port_with_a_server_cannot_be_reserved() -> None:
    """A supervisor cannot take the port of an ordinary server."""
    with (
        listening(0) as server,
        pytest.raises(StartupError, match="in use"),
        reserved_port(f"127.0.0.1:{server.getsockname()[1]}"),
    ):
        pass


def test_a_port_of_another_servers_workers_cannot_be_reserved() -> None:
    """Listening with SO_REUSEPORT does not open a port to other servers."""
    with (
        listening(0, socket.SO_REUSEPORT) as worker,
        pytest.raises(StartupError, match="in use"),
        reserved_port(f"127.0.0.1:{worker.getsockname()[1]}"),
    ):
        pass


def test_a_reserved_port_receives_nothing(port: int) -> None:
    """Until a worker listens, connections are refused instead of waiting."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_workers_share_a_reserved_port(port: int) -> None:
    """Two workers can listen with SO_REUSEPORT, and connections reach them."""
    with listening(port, socket.SO_REUSEPORT), listening(port, socket.SO_REUSEPORT):
        socket.create_connection(("127.0.0.1", port)).close()


def test_connections_that_are_still_closing_do_not_matter() -> None:
    """A server can be replaced immediately, although its port has connections in TIME_WAIT."""
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
    """The message names the address and the flag."""
    with pytest.raises(StartupError, match=f"{listen}: .*--listen"), reserved_port(listen):
        pass
