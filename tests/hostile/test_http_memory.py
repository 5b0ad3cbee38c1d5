"""Requests over HTTP leave no memory behind, however they end."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from base64 import b64encode
from collections.abc import Iterator

import pytest

from tests.hostile.live import MemoryWatch
from tests.processes import ServerProcess, server_process

pytestmark = [pytest.mark.hostile, pytest.mark.long]

_MB = 1 << 20
_COUNT = 60
_MOST_GROWTH = 250 * _MB  # less than half of what the requests would keep
_SERVICE = "/alignserve.v1.AlignService"


@pytest.fixture(scope="module")
def uncollected() -> Iterator[ServerProcess]:
    """A server without garbage collection."""
    program = (sys.executable, "-m", "tests.hostile.uncollected")
    flags = ("--checkpoint", "fake", "--http-listen", "127.0.0.1:0")
    with server_process(*flags, program=program) as server:
        yield server


def _request(method: str, kind: str, body: bytes, missing: int = 0, **headers: str) -> bytes:
    """Returns a request whose body lacks some bytes at its end."""
    given = {"host": "a", "content-type": kind, "content-length": str(len(body) + missing), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST {_SERVICE}/{method} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _image() -> str:
    return b64encode(bytes(8 * _MB)).decode()


# By what happens: the bytes to send, and whether the client leaves instead of reading an answer.
_REQUESTS = {
    "a client leaves within a body": (
        lambda: _request("EmbedText", "application/json", b" " * 12 * _MB, missing=1),
        True,
    ),
    "a client leaves within a message of a stream": (
        lambda: _request(
            "StreamInfer", "application/connect+json", struct.pack(">BI", 0, 12 * _MB) + b" " * 11 * _MB, _MB
        ),
        True,
    ),
    "a body is too large": (
        lambda: _request("EmbedText", "application/json", b" " * 12 * _MB, missing=12 * _MB),
        False,
    ),
    "a body is not JSON": (lambda: _request("EmbedText", "application/json", b" " * 12 * _MB), False),
    "a label is blank": (
        lambda: _request(
            "Classify",
            "application/json",
            json.dumps({"images": [{"content": _image()}], "labels": [" "]}).encode(),
        ),
        False,
    ),
    "a message of a stream is not JSON": (
        lambda: _request(
            "StreamInfer", "application/connect+json", struct.pack(">BI", 0, 12 * _MB) + b" " * 12 * _MB
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", _REQUESTS)
async def test_requests_leave_nothing_behind(uncollected: ServerProcess, name: str) -> None:
    """Memory is the same after many of them, even without a garbage collector."""
    make, leaves = _REQUESTS[name]
    request = make()
    await _send(uncollected.http_port, request, leaves=leaves)
    watch = MemoryWatch(uncollected.process.pid)

    for _ in range(_COUNT):
        await _send(uncollected.http_port, request, leaves=leaves)

    assert watch.growth < _MOST_GROWTH


async def _send(port: int, request: bytes, *, leaves: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if leaves:
        writer.write_eof()
        await reader.read()  # until the server has noticed
    else:
        status = int((await reader.readline()).split()[1])
        assert status in (200, 400, 413)
    writer.transport.abort()
