"""A stream socket that carries messages in both directions, with few system calls.

A message is its length, one byte that names its kind, and its body. All messages of one iteration of the
event loop are sent together, and all that have arrived are read together: under load a wake-up serves many.

A ring in shared memory with an eventfd needs as many system calls. In Python it takes more CPU time for each
message if many are in flight, and only a little less if one is. The socket also reports the end of the other
process, and holds back a sender.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from alignserve_server.fronts.messages import HEADER_BYTES, read_header
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_READ_BYTES = 256 << 10  # read at once
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_UNSENT_BYTES = 256 << 20  # of a peer that does not read


class Wire:
    """One end of a connection. Use only on the event loop's thread."""

    def __init__(
        self,
        connected: socket.socket,
        on_message: Callable[[int, memoryview], object],
        on_end: Callable[[], object],
    ) -> None:
        """Starts to read.

        Args:
            connected: The socket. Owned by this object from now on.
            on_message: Called with the kind and the body of each message; the body is valid only during the
                call. If it raises an error, the message is malformed and the connection ends.
            on_end: Called once, when the other end is gone or has sent a malformed message, but not after
                `close`.
        """
        connected.setblocking(False)
        self._socket = connected
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_READ_BYTES)
        self._filled = 0  # bytes of the buffer that are read but not yet passed on
        self._unsent: list[bytes] = []
        self._remainder = memoryview(b"")  # of messages that the socket did not take at once
        self._is_flushing = False  # whether `_flush` will be called
        self._is_blocked = False  # whether it will be called when the socket takes more
        self.is_open = True
        self._loop.add_reader(connected, self._read)

    def send(self, message: bytes) -> None:
        """Sends a message at the end of this iteration of the loop; no effect if the connection is closed."""
        if self.is_open:
            self._unsent.append(message)
            if not self._is_flushing:
                self._is_flushing = True
                self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Sends what the socket takes at once of the messages that are left, and closes it."""
        if self.is_open:
            self._on_end = _ignore  # sending may find that the other end is gone
            if self._is_flushing:
                self._flush()
            self._close()

    def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._unsent.clear()
            self._on_message = self._on_end = _ignore  # their objects have this one: a cycle

    def _end(self) -> None:
        if self.is_open:
            on_end = self._on_end
            self._close()
            on_end()

    def _flush(self) -> None:
        """Sends what the socket takes at once, and the rest when it takes more."""
        if not self.is_open:
            return
        if not self._remainder:
            self._remainder = memoryview(b"".join(self._unsent))
            self._unsent.clear()
        try:
            sent = self._socket.send(self._remainder)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._end()
            return
        self._remainder = self._remainder[sent:]
        if self._remainder or self._unsent:
            self._flush_later()
        else:
            self._is_flushing = False
            if self._is_blocked:
                self._is_blocked = False
                self._loop.remove_writer(self._socket)

    def _flush_later(self) -> None:
        unsent_bytes = len(self._remainder) + sum(map(len, self._unsent))
        if unsent_bytes > _MAX_UNSENT_BYTES:
            _log.error("peer_does_not_read", unsent_bytes=unsent_bytes)
            self._end()
        elif not self._is_blocked:
            self._is_blocked = True
            self._loop.add_writer(self._socket, self._flush)

    def _read(self) -> None:
        try:
            received = self._socket.recv_into(memoryview(self._buffer)[self._filled :])
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            received = 0
        if not received:
            self._end()
            return
        self._filled += received
        try:
            self._pass_on()
        except Exception as error:  # noqa: BLE001 — whatever a malformed message provokes
            _log.error("connection_malformed", exc_info=error)
            self._end()

    def _pass_on(self) -> None:
        """Passes on the complete messages and moves the rest to the start of the buffer."""
        start, filled, buffer = 0, self._filled, memoryview(self._buffer)
        while filled - start >= HEADER_BYTES:
            size, kind = read_header(buffer, start)
            if size > _MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {size} bytes, limit {_MAX_MESSAGE_BYTES}")
            if filled - start < HEADER_BYTES + size:
                self._make_room(start, HEADER_BYTES + size)
                return
            end = start + HEADER_BYTES + size
            self._on_message(kind, buffer[start + HEADER_BYTES : end])
            if not self.is_open:
                return
            start = end
        self._make_room(start, HEADER_BYTES)

    def _make_room(self, start: int, needed: int) -> None:
        """Keeps what is not passed on, in a buffer that can hold `needed` bytes."""
        rest = self._filled - start
        size = max(needed, _READ_BYTES)
        if size != len(self._buffer):
            grown = bytearray(size)
            grown[:rest] = memoryview(self._buffer)[start : self._filled]
            self._buffer = grown
        elif rest and start:
            self._buffer[:rest] = self._buffer[start : self._filled]
        self._filled = rest


def _ignore(*_: object) -> None:
    """Replaces a callback that will not be called again."""
