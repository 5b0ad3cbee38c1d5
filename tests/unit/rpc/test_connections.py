"""The sockets of a port, as the operating system sees them, can be found, inspected and ended."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from alignserve_server.rpc import connections
from alignserve_server.rpc.connections import Connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open files are listed in /proc")

PATIENCE_SECONDS = 30.0  # only a failing test waits this long


class Port:
    """A listening port, and connections to it."""

    def __init__(self, sockets: ExitStack, address: str = "127.0.0.1") -> None:
        self._sockets = sockets
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = sockets.enter_context(socket.create_server((address, 0), family=family))
        self.address = self.listener.getsockname()[:2]
        self.connections = Connections(self.address[1])

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Returns both ends of a new connection, the client's first."""
        client = self._sockets.enter_context(socket.create_connection(self.address, PATIENCE_SECONDS))
        accepted = self._sockets.enter_context(self.listener.accept()[0])
        accepted.settimeout(PATIENCE_SECONDS)
        return client, accepted


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["127.0.0.1", "::1"])
def port(request: pytest.FixtureRequest, sockets: ExitStack) -> Port:
    try:
        return Port(sockets, request.param)
    except OSError:
        pytest.skip(f"this machine has no {request.param}")


def has_arrived(end: socket.socket) -> bool:
    """Waits until a socket has received bytes or the end of the stream."""
    return bool(select.select([end], [], [], PATIENCE_SECONDS)[0])


def test_unread_bytes_are_detected(port: Port) -> None:
    """A server that stops waits until it has read everything that was sent before."""
    client, accepted = port.connect()
    before = port.connections.are_read()

    client.sendall(b"a request")
    assert has_arrived(accepted)
    meanwhile = port.connections.are_read()
    accepted.recv(100)

    assert (before, meanwhile, port.connections.are_read()) == (True, False, True)


def test_unacknowledged_bytes_are_detected(port: Port) -> None:
    """They stay in the kernel if the client's machine accepts no more."""
    _, accepted = port.connect()
    before = port.connections.are_written()

    accepted.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            accepted.send(bytes(1 << 16))
    meanwhile = port.connections.are_written()

    assert (before, meanwhile) == (True, False)


def test_connections_end_once_everything_is_sent(port: Port) -> None:
    """The client gets its response and then the end of the stream; bytes that it still sends are accepted."""
    client, accepted = port.connect()
    accepted.sendall(b"an answer")

    port.connections.end()
    client.sendall(b"another request")

    assert [client.recv(100), client.recv(100)] == [b"an answer", b""]
    assert has_arrived(accepted)
    assert accepted.recv(100) == b"another request"


def test_other_ports_and_the_clients_ends_are_left_alone(port: Port, sockets: ExitStack) -> None:
    """A process may have other connections, even to itself."""
    port.connect()
    other = Port(sockets)
    client, accepted = other.connect()
    client.sendall(b"unread")
    assert has_arrived(accepted)

    port.connections.end()

    assert port.connections.are_read()
    accepted.sendall(b"still there")
    assert client.recv(100) == b"still there"


def test_a_port_that_stops_accepting_keeps_its_connections(port: Port) -> None:
    """Requests for new connections get no reply, so clients try another server."""
    client, accepted = port.connect()

    port.connections.stop_accepting()

    with pytest.raises(TimeoutError), socket.create_connection(port.address, timeout=0.2):
        pass
    client.sendall(b"a request")
    assert accepted.recv(100) == b"a request"


def test_a_closed_connection_does_not_matter(port: Port) -> None:
    """Either end may be closed already."""
    client, accepted = port.connect()
    client.close()
    assert has_arrived(accepted)
    port.connections.end()
    port.connections.end()
    states = [port.connections.are_read(), port.connections.are_written()]
    accepted.close()

    assert states == [True, True]
    assert port.connections.are_read()


def test_inspecting_leaves_no_file_open(port: Port) -> None:
    """The duplicates of the sockets are closed."""
    port.connect()
    before = len(list(Path("/proc/self/fd").iterdir()))

    for ask in (port.connections.are_read, port.connections.are_written, port.connections.stop_accepting):
        ask()

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_where_files_are_not_listed_there_are_no_connections(
    port: Port, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a system without /proc, gRPC stops as it does by default."""
    client, accepted = port.connect()
    client.sendall(b"unread")
    assert has_arrived(accepted)
    monkeypatch.setattr(connections, "_OPEN_FILES", tmp_path / "none")

    port.connections.end()

    assert (port.connections.are_read(), port.connections.are_written()) == (True, True)
    accepted.sendall(b"still there")
    assert client.recv(100) == b"still there"
