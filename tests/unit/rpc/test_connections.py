"""The sockets of a port, as the operating system knows them: found, asked, and ended."""

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

PATIENCE_SECONDS = 30.0  # only a failing test waits so long


class Port:
    """A port that listens, and connections to it."""

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
    """Waits until bytes, or the end, have come to a socket."""
    return bool(select.select([end], [], [], PATIENCE_SECONDS)[0])


def test_what_is_sent_and_not_read_is_seen(port: Port) -> None:
    """A server that stops waits until it has read all that was sent before."""
    client, accepted = port.connect()
    before = port.connections.are_read()

    client.sendall(b"a request")
    assert has_arrived(accepted)
    meanwhile = port.connections.are_read()
    accepted.recv(100)

    assert (before, meanwhile, port.connections.are_read()) == (True, False, True)


def test_what_is_written_and_not_acknowledged_is_seen(port: Port) -> None:
    """A client's machine that takes no more leaves it in the kernel."""
    _, accepted = port.connect()
    before = port.connections.are_written()

    accepted.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            accepted.send(bytes(1 << 16))
    meanwhile = port.connections.are_written()

    assert (before, meanwhile) == (True, False)


def test_connections_end_after_what_was_written(port: Port) -> None:
    """The client gets its answer, and then the end; what it still sends is taken."""
    client, accepted = port.connect()
    accepted.sendall(b"an answer")

    port.connections.end()
    client.sendall(b"another request")

    assert [client.recv(100), client.recv(100)] == [b"an answer", b""]
    assert has_arrived(accepted)
    assert accepted.recv(100) == b"another request"


def test_other_ports_and_the_clients_ends_are_left_alone(port: Port, sockets: ExitStack) -> None:
    """A process may have connections of its own, even to itself."""
    port.connect()
    other = Port(sockets)
    client, accepted = other.connect()
    client.sendall(b"unread")
    assert has_arrived(accepted)

    port.connections.end()

    assert port.connections.are_read()
    accepted.sendall(b"still there")
    assert client.recv(100) == b"still there"


def test_a_port_that_accepts_no_more_keeps_its_connections(port: Port) -> None:
    """Who asks for a new one is not answered, and tries elsewhere."""
    client, accepted = port.connect()

    port.connections.accept_no_more()

    with pytest.raises(TimeoutError), socket.create_connection(port.address, timeout=0.2):
        pass
    client.sendall(b"a request")
    assert accepted.recv(100) == b"a request"


def test_a_connection_that_is_over_holds_nothing_up(port: Port) -> None:
    """Neither the client's end nor ours need be there still."""
    client, accepted = port.connect()
    client.close()
    assert has_arrived(accepted)
    port.connections.end()
    port.connections.end()
    states = [port.connections.are_read(), port.connections.are_written()]
    accepted.close()

    assert states == [True, True]
    assert port.connections.are_read()


def test_asking_leaves_no_file_open(port: Port) -> None:
    """The duplicates are closed again."""
    port.connect()
    before = len(list(Path("/proc/self/fd").iterdir()))

    for ask in (port.connections.are_read, port.connections.are_written, port.connections.accept_no_more):
        ask()

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_where_files_are_not_listed_there_are_no_connections(
    port: Port, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a system without /proc: gRPC's own end is all there is."""
    client, accepted = port.connect()
    client.sendall(b"unread")
    assert has_arrived(accepted)
    monkeypatch.setattr(connections, "_OPEN_FILES", tmp_path / "none")

    port.connections.end()

    assert (port.connections.are_read(), port.connections.are_written()) == (True, True)
    accepted.sendall(b"still there")
    assert client.recv(100) == b"still there"
