"""The TCP connections of the gRPC port, as the operating system sees them.

When gRPC stops a server, it cancels calls that are still on their way to it. Their callers get CANCELLED,
which no client retries; if the connection ends instead, they get UNAVAILABLE, which every client retries.
gRPC has no way to end connections, so their sockets are found among the open files of this process, which
Linux lists. On other systems none are found, and gRPC stops as it does by default.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")
_SO_ATTACH_FILTER = 26  # on Linux; the module `socket` does not define it
_KEEP_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # struct sock_filter: BPF_RET | BPF_K


class Connections:
    """The sockets of this process that belong to a port: the listening one and the accepted ones."""

    def __init__(self, port: int) -> None:
        self._port = port

    def are_read(self) -> bool:
        """Returns whether gRPC has read everything that clients have sent so far."""
        return not any(_queued(each, termios.FIONREAD) for each in self._accepted())

    def are_written(self) -> bool:
        """Returns whether the clients' machines have acknowledged everything that was written."""
        return not any(_queued(each, termios.TIOCOUTQ) for each in self._accepted())

    def stop_accepting(self) -> None:
        """Makes the kernel drop requests for new connections.

        Only gRPC can close the port, and it would end the connections too, or log that it cannot accept any.
        """
        for each in self._sockets():
            if _listens(each):
                with suppress(OSError):  # a kernel without filters; then new connections are accepted
                    _drop_packets(each)

    def end(self) -> None:
        """Ends connections once everything written to them has been sent.

        Bytes that clients still send are read and dropped: closing a socket with unread bytes would destroy
        responses that are on their way.
        """
        for each in self._accepted():
            with suppress(OSError):  # the client was faster
                each.shutdown(socket.SHUT_WR)

    def _accepted(self) -> Iterator[socket.socket]:
        return (each for each in self._sockets() if not _listens(each))

    def _sockets(self) -> Iterator[socket.socket]:
        """Yields a duplicate of each socket, and closes it afterwards."""
        for descriptor in _descriptors():
            with suppress(OSError):  # closed in the meantime
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
                        if _port(duplicate) == self._port:
                            yield duplicate


def _descriptors() -> list[int]:
    try:
        return [int(path.name) for path in _OPEN_FILES.iterdir()]
    except OSError:
        return []


def _port(each: socket.socket) -> int | None:
    if each.family not in (socket.AF_INET, socket.AF_INET6) or each.type != socket.SOCK_STREAM:
        return None
    try:
        port: int = each.getsockname()[1]
    except OSError:
        return None
    return port


def _listens(each: socket.socket) -> bool:
    return bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _drop_packets(each: socket.socket) -> None:
    """Attaches a filter with one instruction: keep 0 bytes. https://docs.kernel.org/networking/filter.html"""
    program = ctypes.create_string_buffer(_KEEP_NOTHING)
    each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _queued(each: socket.socket, request: int) -> int:
    """Returns the number of bytes in a kernel queue; 0 if the connection has ended."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(each.fileno(), request, count)
    except OSError:
        return 0
    return count[0]
