"""A connection of the HTTP port: uvicorn's protocol, with the limits and time-outs that it lacks.

uvicorn ends a connection only if it is idle after an answer. Here a client cannot hold one for longer than a
time-out by sending nothing, by sending headers slowly, or by not reading. Nor can it send endless headers.
An answer that is sent before the whole body has arrived says `Connection: close`, so that the rest is not
taken for the next request. The rest is dropped for a while before the socket is closed, since closing a
socket with unread bytes would destroy the answer on its way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from alignserve_server.http.call import CERTIFICATE_NAME

_MAX_PIPELINED = 16  # requests that wait for the answer to an earlier one; few clients send any
_CONNECTION = "connection"  # in the state of an ASGI scope
_LINGER_SECONDS = 2.0  # for the rest of a body, after an answer that ends the connection


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of each connection, and of their number.

    Attributes:
        head_timeout_seconds: Time for the headers of a request to arrive, from their first byte on.
        idle_timeout_seconds: A client that neither sends nor reads for this long is disconnected.
        max_head_bytes: Maximum size of the request line and the headers.
        max_connections: Above it, a new connection replaces one that is waiting for its client.
    """

    head_timeout_seconds: float
    idle_timeout_seconds: float
    max_head_bytes: int = 32 << 10
    max_connections: int = 1024


class Connections:
    """The connections of a port. It takes the place of uvicorn's `ServerState`."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.total_requests = 0  # kept by uvicorn, like the others
        self.connections = self
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_draining = False  # then every answer ends its connection
        self.none_left = asyncio.Event()
        self.none_left.set()
        self._open: dict[Connection, None] = {}  # oldest first
        self._date = (0, b"")

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer."""
        second = int(time.time())
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return [(b"date", self._date[1])]

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open))

    def add(self, connection: Connection) -> None:
        """Adds a new connection."""
        self._open[connection] = None
        self.none_left.clear()

    def discard(self, connection: Connection) -> None:
        """Removes a connection that has ended."""
        self._open.pop(connection, None)
        if not self._open:
            self.none_left.set()

    def make_room(self) -> bool:
        """Ends the oldest connection that is waiting for its client; returns False if there is none."""
        for connection in self._open:
            if not connection.is_busy:
                connection.transport.abort()
                self.discard(connection)
                return True
        return False


class Connection(HttpToolsProtocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, config: Config, connections: Connections) -> None:
        super().__init__(config, connections, {})  # type: ignore[arg-type]  # it has what uvicorn uses
        self._all = connections
        self._limits = connections.limits
        self._active: RequestResponseCycle | None = None  # whose request is being answered
        self._is_ending = False
        self._is_in_head = self._is_in_body = False
        self._head_bytes = 0  # of the current request; in its body, those of chunks' sizes and trailers
        self._body_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._active is not None and not self._active.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        has_room = len(self._all) < self._limits.max_connections or self._all.make_room()
        super().connection_made(transport)
        self.app_state = {CERTIFICATE_NAME: _common_name(transport), _CONNECTION: self}
        self._ending = _EndingTransport(self)
        self._wait_idle()
        if not has_room:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        if self.is_busy and self._active is not None:
            self._active.disconnected = True  # uvicorn tells only the last one of several pipelined requests
            self._active.message_event.set()
        super().connection_lost(exc)
        self._is_ending = True
        self.cycle = self._active = None  # type: ignore[assignment]  # a cycle of references, with a body

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._unset_keepalive_if_required()
        was_in_head, was_in_body, body_bytes = self._is_in_head, self._is_in_body, self._body_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse_head()
            else:
                self._refuse(400, "invalid HTTP request")
            return
        if was_in_head and self._is_in_head:
            self._head_bytes += len(data)
        elif was_in_body and self._is_in_body:
            self._head_bytes += len(data) - (self._body_bytes - body_bytes)
        if self._head_bytes > self._limits.max_head_bytes + 8 * self._body_bytes:
            self._refuse_head()
            return
        self._time_head()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError  # stops the parser
        self._is_in_head, self._head_bytes, self._body_bytes = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if self._is_in_head:  # otherwise it is a trailer, which must not pass for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_head()
        if self.parser.should_upgrade():
            return
        self._is_in_head, self._is_in_body, self._head_bytes = False, True, 0
        was_busy = self.is_busy
        super().on_headers_complete()
        self.cycle.transport = self._ending  # type: ignore[assignment]  # it has what a cycle uses
        if not was_busy:  # otherwise the request waits for the answer to an earlier one
            self._active = self.cycle

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # the parser stops before the body
            return
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._is_ending:
            return
        following = self.pipeline[-1][0] if self.pipeline else self._active
        super().on_response_complete()
        self._active = following

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.idle_timeout_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        """Ends the connection, once the request in progress is answered."""
        if self.is_busy and self._active is not None:
            self._active.keep_alive = False
        elif not self._is_ending:
            self._close()

    def end_after(self, cycle: RequestResponseCycle | None) -> None:
        """Ends the connection after an answer, which may have come before all of its request."""
        if cycle is not None and cycle.more_body:
            self._linger()
        else:
            self._close()

    def ends_after_answer(self) -> bool:
        """Returns whether the answer that begins now ends the connection.

        It does if it comes before all of its request, or while the server drains.
        """
        if self._active is None:
            return False
        if self._active.more_body or self._all.is_draining:
            self._active.keep_alive = False
        return not self._active.keep_alive

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parses a request that asks for another protocol again, without the header that asks for it.

        Java's client asks for h2c with its first request. The parser takes nothing after such headers.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # asks by its method
            self._refuse(400, "invalid HTTP request")
            return
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.max_head_bytes:
            raise ValueError  # stops the parser

    def _check_head(self) -> None:
        """Refuses what the parser lets pass and others may read in another way (RFC 9112)."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise ValueError  # stops the parser
        if codings and (codings != [b"chunked"] or version == "1.0"):
            raise ValueError

    def _time_head(self) -> None:
        """Starts the time-out for headers when they begin, and stops it when they are complete."""
        if self._is_in_head or not self.is_busy:  # or only line ends have come
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(
                    self._limits.head_timeout_seconds, self._refuse, 408, "the headers did not arrive in time"
                )
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_head(self) -> None:
        self._refuse(431, f"the headers have more than {self._limits.max_head_bytes} bytes")

    def _refuse(self, status: int, message: str) -> None:
        """Refuses bytes that are not a request, and ends the connection."""
        if self._is_ending:
            return
        active = self._active if self.is_busy else None
        if active is not None and (active is not self.cycle or not active.more_body):
            active.keep_alive = False  # its request was complete: they came after it
            self.pipeline.clear()
            return
        if active is not None:  # its body is broken
            active.disconnected = True
            active.message_event.set()
            if active.response_started:
                self.transport.abort()
                return
        self.transport.write(
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(message)}\r\nconnection: close\r\n\r\n{message}".encode()
        )
        self._linger()

    def _linger(self) -> None:
        """Drops what the client still sends, until it closes the connection or for a while."""
        self._is_ending = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _close(self) -> None:
        """Closes the connection once what was written is read, or after a time-out."""
        self._is_ending = True
        self.transport.close()
        self._end_timer = self.loop.call_later(self._limits.idle_timeout_seconds, self.transport.abort)

    def _wait_idle(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self._limits.idle_timeout_seconds, self.timeout_keep_alive_handler
        )


def announcing_ends(app: ASGIApp) -> ASGIApp:
    """Returns an app whose answers say so if they end their connection."""

    async def announcing(scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"][_CONNECTION]

        async def send_announcing(message: Message) -> None:
            if message["type"] == "http.response.start" and connection.ends_after_answer():
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, send_announcing)

    return announcing


class _EndingTransport:
    """What a cycle writes its answer to; `close` ends the connection as the state of its request demands."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        self._connection.end_after(self._connection._active)


def _common_name(transport: asyncio.Transport) -> str | None:
    """Returns the common name of the client's certificate, if it has one."""
    certificate = transport.get_extra_info("peercert") or {}
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return None
