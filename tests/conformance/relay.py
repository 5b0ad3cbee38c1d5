"""A relay between a client and a server, which can break or freeze the connections that it carries."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field

_READ_BYTES = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset


@dataclass(eq=False)
class _Carried:
    """One connection: both of its ends, and whether it is frozen."""

    ends: tuple[socket.socket, socket.socket]
    moves: threading.Event = field(default_factory=threading.Event)


class Relay:
    """Carries every connection to its port on to a server. Use it in a `with` statement.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        connection_count: Connections that were opened so far.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connection_count = 0
        self._lock = threading.Lock()
        self._carried: list[_Carried] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Breaks every connection with a reset; later ones are carried."""
        with self._lock:
            carried, self._carried = self._carried, []
        for each in carried:
            for end in each.ends:
                _close(end)
            each.moves.set()

    def freeze(self) -> None:
        """Carries nothing more on the connections that are open, and does not close them; later ones move."""
        with self._lock:
            for each in self._carried:
                each.moves.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self.connection_count += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                _close(client)
                continue
            carried = _Carried((client, server))
            carried.moves.set()
            with self._lock:
                self._carried.append(carried)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_carry, args=(source, target, carried), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, carried: _Carried) -> None:
    with suppress(OSError):
        while data := source.recv(_READ_BYTES):
            carried.moves.wait()
            target.sendall(data)
    carried.moves.wait()  # the end of a frozen connection is not seen either
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
    end.close()
