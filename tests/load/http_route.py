"""Sends requests of the client's load generator to HTTP/1.1 servers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import suppress

from alignserve._bench.recorder import Failure
from alignserve._bench.routes import RequestFailed
from alignserve._bench.workload import UnaryRequest

from tests.load.inputs import bodies


class HttpRoute:
    """Sends requests over keep-alive connections, one for each request in flight."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
        """Sends the body to the path that the call names and reads the answer."""
        head = (
            f"POST {call.method} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(call.request)}\r\n\r\n"
        )
        try:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
            writer.write(head.encode() + call.request)
            status = await asyncio.wait_for(_answer(reader), timeout_seconds)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise RequestFailed(Failure("UNAVAILABLE", type(error).__name__, str(error))) from error
        self._idle.append((reader, writer))
        if status != 200:
            raise RequestFailed(Failure("INTERNAL", f"HTTP_{status}", ""))

    async def close(self) -> None:
        """Closes the connections."""
        for _, writer in self._idle:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)


def http_calls(modality: str, *, as_json: bool, seed: int | None = None) -> Iterator[UnaryRequest]:
    """Yields requests to `/image` or `/text` with the items of `bodies`, raw or as base64 in JSON."""
    for body in bodies(modality, seed):
        request = json.dumps({"content": base64.b64encode(body).decode()}).encode() if as_json else body
        yield UnaryRequest(f"/{modality}", request)


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    else:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    return int(lines[0].split()[1])
