"""A gRPC client on raw HTTP/2 that controls each byte it sends and how much it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes

from tests.integration.serving import until


def framed(message: bytes, announced: int | None = None) -> bytes:
    """Returns a message with gRPC's prefix; `announced` is the length in it, right or wrong."""
    length = len(message) if announced is None else announced
    return b"\0" + length.to_bytes(4, "big") + message


@dataclass
class RawCall:
    """One call, and its response so far."""

    stream_id: int
    headers: dict[str, str] = field(default_factory=dict)  # and trailers
    body: bytearray = field(default_factory=bytearray)
    is_over: bool = False

    @property
    def status(self) -> int | None:
        """The call's gRPC status; None until it arrives."""
        status = self.headers.get("grpc-status")
        return None if status is None else int(status)

    @property
    def message(self) -> str:
        """The text of the status, percent-encoded."""
        return self.headers.get("grpc-message", "")


class RawClient:
    """A connection. It reads at once, but never extends the window of an answer by itself."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int | None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._calls: dict[int, RawCall] = {}
        self.is_closed = False
        self._http.initiate_connection()
        if window is not None:
            self._http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._flush()

    async def call(
        self,
        method: str | bytes,
        body: bytes = b"",
        *,
        ends: bool = True,
        metadata: dict[str, str] | None = None,
    ) -> RawCall:
        """Starts a call and sends as much of a body as the server's windows allow now."""
        call = RawCall(self._http.get_next_available_stream_id())
        self._calls[call.stream_id] = call
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
            **(metadata or {}),
        }
        self._http.send_headers(call.stream_id, list(headers.items()), end_stream=ends and not body)
        if body:
            self.send(call, body, ends=ends)
        self._flush()
        await self._writer.drain()
        return call

    def send(self, call: RawCall, body: bytes, *, ends: bool) -> int:
        """Sends as much of a body as the windows allow, and returns how much that was."""
        sent = 0
        while sent < len(body) and not call.is_over:
            room = min(
                self._http.local_flow_control_window(call.stream_id), self._http.max_outbound_frame_size
            )
            if room == 0:
                break
            piece = body[sent : sent + room]
            sent += len(piece)
            self._http.send_data(call.stream_id, piece, end_stream=ends and sent == len(body))
        self._flush()
        return sent

    async def send_all(self, call: RawCall, body: bytes, *, ends: bool) -> None:
        """Sends a body as fast as the server's windows allow, until it is sent or the call ends."""
        sent = 0
        while sent < len(body) and not (call.is_over or self.is_closed):
            step = self.send(call, body[sent:], ends=ends)
            sent += step
            await self._writer.drain()
            if not step:
                await asyncio.sleep(0.001)  # lets the reader see window updates

    def open_window(self, call: RawCall, size: int) -> None:
        """Extends the window of an answer by this many bytes."""
        self._http.increment_flow_control_window(size, call.stream_id)
        self._flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Reads until the condition holds; the test's timeout bounds it."""
        await until(lambda: condition() or self.is_closed)

    async def read(self) -> None:
        """Reads until the server closes the connection."""
        while data := await self._reader.read(1 << 16):
            for event in self._http.receive_data(data):
                self._take(event)
            self._flush()
        self.is_closed = True

    def _take(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.is_closed = True
        call = self._calls.get(getattr(event, "stream_id", None) or 0)
        if call is None:
            return
        if isinstance(event, (ResponseReceived, TrailersReceived)):
            call.headers.update({str(name): str(value) for name, value in event.headers or ()})
        elif isinstance(event, DataReceived):
            call.body += event.data or b""
        elif isinstance(event, (StreamEnded, StreamReset)):
            call.is_over = True

    def _flush(self) -> None:
        self._writer.write(self._http.data_to_send())


@asynccontextmanager
async def raw_client(port: int, window: int | None = None) -> AsyncIterator[RawClient]:
    """Connects for the length of the block.

    Args:
        port: The server's port on 127.0.0.1.
        window: Bytes of each answer that the client accepts; it never asks for more. None is HTTP/2's
            default, 65,535.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = RawClient(reader, writer, window)
    reading = asyncio.ensure_future(client.read())
    try:
        yield client
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.transport.abort()  # drops bytes that the server has not read yet
        await asyncio.sleep(0)  # lets the loop close the socket
