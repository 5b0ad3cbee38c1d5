"""A minimal HTTP/2 connection, for frames that gRPC's clients hide: pings and GOAWAY."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1

NO_ERROR, ENHANCE_YOUR_CALM = 0, 11


@dataclass(frozen=True)
class Frame:
    """A received frame."""

    kind: int
    flags: int
    payload: bytes

    @property
    def error_code(self) -> int:
        """Why the connection ends; only in a GOAWAY."""
        return int.from_bytes(self.payload[4:8], "big")

    @property
    def message(self) -> str:
        """The reason as text; only in a GOAWAY."""
        return self.payload[8:].decode()


class Connection:
    """The client's end, after as much of the settings exchange as the tests need."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.write(_PREFACE)
        self._send(_SETTINGS, b"")

    async def ping(self) -> Frame:
        """Sends a ping and returns the response: its acknowledgement or a GOAWAY."""
        self._send(PING, bytes(8))
        return await self.next(PING, GOAWAY)

    async def next(self, *kinds: int) -> Frame:
        """Returns the next frame of these kinds; acknowledges settings and pings until then."""
        while True:
            frame = await self._read()
            if frame.kind in (_SETTINGS, PING) and not frame.flags & ACK:
                self._send(frame.kind, frame.payload if frame.kind == PING else b"", ACK)
            elif frame.kind in kinds:
                return frame

    async def _read(self) -> Frame:
        header = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(header[:3], "big"))
        return Frame(header[3], header[4], payload)

    def _send(self, kind: int, payload: bytes, flags: int = 0) -> None:
        self._writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + payload)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """Connects for the length of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
