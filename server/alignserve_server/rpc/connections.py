"""The TCP connections of the gRPC port, as the operating system knows them.

gRPC ends a server by cancelling calls that are on their way to it, and their callers get CANCELLED, which no
client retries. Callers whose connection ends get UNAVAILABLE, which all of them do. gRPC itself offers no way
to end connections, so their sockets are looked up among the files of this process, as Linux lists them;
elsewhere there are none to be found, and gRPC's own end is all there is.
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
_SO_ATTACH_FILTER = 26  # of Linux; the module `socket` has no name for it
_KEEP_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # struct sock_filter: BPF_RET | BPF_K


class Connections:
    """The sockets of this process that belong to a port: the one that listens, and accepted ones."""

    def __init__(self, port: int) -> None:
        self._port = port

    def are_read(self) -> bool:
        """Says whether gRPC has read all that clients have sent so far."""
        return not any(_queued(each, termios.FIONREAD) for each in self._accepted())

    def are_written(self) -> bool:
        """Says whether clients' machines have acknowledged all that was written."""
        return not any(_queued(each, termios.TIOCOUTQ) for each in self._accepted())

    def accept_no_more(self) -> None:
        """Lets the kernel drop what asks for a new connection.

        To close the port is gRPC's, which ends connections with it, or logs that it cannot accept any.
        """
        for each in self._sockets():
            if _listens(each):
                with suppress(OSError):  # a kernel without filters; then those who connect are accepted
                    _drop_packets(each)

    def end(self) -> None:
        """Ends connections after what has been written to them.

        What clients still send is read and dropped: closing a socket with unread bytes would destroy answers
        that are on their way.
        """
        for each in self._accepted():
            with suppress(OSError):  # the client was faster
                each.shutdown(socket.SHUT_WR)

    def _accepted(self) -> Iterator[socket.socket]:
        return (each for each in self._sockets() if not _listens(each))

    def _sockets(self) -> Iterator[socket.socket]:
        """Yields a duplicate of each, which is closed after its turn."""
        for descriptor in _descriptors():
            with suppress(OSError):  # closed since
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
    """Attaches a filter of one instruction: keep 0 bytes. https://docs.kernel.org/networking/filter.html"""
    program = ctypes.create_string_buffer(_KEEP_NOTHING)
    each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _queued(each: socket.socket, request: int) -> int:
    """Returns the bytes in a queue of the kernel; 0 if the connection is over."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(each.fileno(), request, count)
    except OSError:
        return 0
    return count[0]
