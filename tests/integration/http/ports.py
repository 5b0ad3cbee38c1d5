"""A server with an HTTP port on port 0, and a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from alignserve_server.http import door
from alignserve_server.http.endpoint import Endpoint

from tests.integration.serving import RunningServer, running

Shared = tuple[RunningServer, httpx.AsyncClient]  # the fixture `shared`

in_module_loop = pytest.mark.asyncio(loop_scope="module")  # for tests that use it


@asynccontextmanager
async def serving(
    *endpoints: Endpoint, **overrides: Any
) -> AsyncIterator[tuple[RunningServer, httpx.AsyncClient]]:
    """Runs a server; with endpoints, it serves these in addition to its own."""
    with pytest.MonkeyPatch.context() as patch:
        own = door._endpoints
        patch.setattr(door, "_endpoints", lambda *given: (*endpoints, *own(*given)))
        async with (
            running(http_listen="127.0.0.1:0", **overrides) as served,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.server.http_port}") as client,
        ):
            yield served, client


IMAGE = b"an image"  # any bytes are one to the fake encoder


@asynccontextmanager
async def dialed(served: RunningServer) -> AsyncIterator[Wire]:
    """Opens a plain connection to the HTTP port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.http_port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


@dataclass
class Wire:
    """A connection on which a test writes bytes that no client would."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Reads an answer with a length: its status, its headers and its body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body

    async def is_closed(self) -> bool:
        """Waits for the end of the connection; returns False if bytes come instead."""
        try:
            return not await self.reader.read(1)
        except ConnectionError:
            return True
