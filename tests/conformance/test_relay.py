"""The relay carries connections, and breaks or freezes them."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from tests.conformance.relay import Relay


@pytest.fixture
def relay():
    """A relay in front of a server that echoes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        with Relay(listener.getsockname()[1]) as made:
            yield made
        listener.shutdown(socket.SHUT_RDWR)


def _echo(listener: socket.socket) -> None:
    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1024):
                connection.sendall(data)

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_quietly, args=(answer, connection), daemon=True).start()


def _quietly(answer, connection: socket.socket) -> None:
    try:
        answer(connection)
    except OSError:
        connection.close()


def _connected(relay: Relay) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", relay.port), timeout=30)
    connection.sendall(b"hello")
    assert connection.recv(1024) == b"hello"
    return connection


def test_a_cut_breaks_what_is_open_and_nothing_later(relay: Relay) -> None:
    """The client sees a reset or the end."""
    with _connected(relay) as connection:
        relay.cut()

        with suppress(ConnectionResetError):
            assert connection.recv(1024) == b""
    with _connected(relay):
        assert relay.connection_count == 2


def test_a_frozen_connection_stays_open_and_silent(relay: Relay) -> None:
    """Later connections move."""
    with _connected(relay) as frozen:
        relay.freeze()
        frozen.sendall(b"again")

        with _connected(relay):
            frozen.settimeout(0.3)
            with pytest.raises(TimeoutError):
                frozen.recv(1024)
