"""Sends requests of the client's load generator to HTTP/1.1 servers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from alignserve._bench.recorder import Failure
from alignserve._bench.routes import RequestFailed
from alignserve._bench.workload import UnaryRequest


class HttpRoute:
    """Sends requests over keep-alive connections, one for each request in flight."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
        """See `Route.send`."""
        await self.post(call, timeout_seconds)

    async def post(self, call: UnaryRequest, timeout_seconds: float) -> bytes:
        """Sends the body to the path that the call names, and returns the answer's body.

        Raises:
            RequestFailed: There was no answer, or its status is not 200.
        """
        head = (
            f"POST {call.method} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(call.request)}\r\n\r\n"
        )
        try:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
            writer.write(head.encode() + call.request)
            status, body = await asyncio.wait_for(_answer(reader), timeout_seconds)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise RequestFailed(Failure("UNAVAILABLE", type(error).__name__, str(error))) from error
        self._idle.append((reader, writer))
        if status != 200:
            raise RequestFailed(Failure("INTERNAL", f"HTTP_{status}", body.decode(errors="replace")))
        return body

    async def close(self) -> None:
        """Closes the connections."""
        for _, writer in self._idle:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return int(lines[0].split()[1]), body
