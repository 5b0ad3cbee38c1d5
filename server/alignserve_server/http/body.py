"""Reads the body of a request: within a time, a size and a share of the memory, and unpacked."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import Receive

from alignserve_server.errors import RequestMalformed, ServingError
from alignserve_server.http.call import Disconnected
from alignserve_server.http.refusals import MediaTypeUnsupported, RequestTooLarge, shortened
from alignserve_server.rpc.interruptible import InterruptibleBlocks
from alignserve_server.rpc.shares import ConnectionShares, Share

_UNSHARED_BYTES = 1 << 16  # a body up to this size is in the buffer of its connection in any case
_UNPACK_BYTES = 1 << 16  # at a time
_GZIP = 31  # zlib's number for it


class Body:
    """A body, and the share of the memory that it takes."""

    __slots__ = ("content", "share")

    def __init__(self) -> None:
        self.content = b""
        self.share: Share | None = None  # if it is large

    def release(self) -> None:
        """Drops the content: it has been parsed, or is not needed."""
        self.content = b""
        if self.share is not None:
            self.share.give_back()


class BodyReader:
    """Reads bodies. How many large ones arrive at the same time is limited; the others wait unread."""

    def __init__(self, uploads: ConnectionShares, timeout_seconds: float, max_bytes: int) -> None:
        """Starts with nothing being read.

        Args:
            uploads: Shares of the large bodies that callers may send at the same time.
            timeout_seconds: Maximum time for a body to arrive.
            max_bytes: Maximum size of a body, as received and unpacked.
        """
        self._uploads = uploads
        self._max_bytes = max_bytes
        self._reading = InterruptibleBlocks(timeout_seconds)

    async def read(self, headers: Headers, receive: Receive, caller: str, life: ExitStack) -> Body:
        """Returns the body of a request, unpacked.

        Args:
            headers: The headers of the request.
            receive: The ASGI function that returns the next piece.
            caller: Whose share a large body counts against, until it is released or `life` ends.
            life: The life of the call.

        Raises:
            RequestTooLarge, MediaTypeUnsupported, RequestMalformed: It is not accepted.
            RequestTimeout: It has not arrived in time.
            Disconnected: The client has gone.
            ServingError: `interrupt` was called meanwhile.
        """
        unpack = _unpacker(headers)
        self._check(int(headers.get("content-length", 0)))
        with self._reading.block():
            body, content = Body(), bytearray()
            life.callback(body.release)
            async for piece in self._received(receive):
                for unpacked in (piece,) if unpack is None else unpack.feed(piece):
                    self._check(len(content) + len(unpacked))
                    if body.share is None and len(content) + len(unpacked) > _UNSHARED_BYTES:
                        body.share = await self._uploads.wait(caller)
                    content += unpacked
                    await asyncio.sleep(0)  # unpacking megabytes takes long
            if unpack is not None and not unpack.is_complete:
                raise RequestMalformed("the body is not complete gzip data")
            body.content = bytes(content)
            return body

    def interrupt(self, error: Callable[[], ServingError]) -> None:
        """Ends the calls whose bodies are being read now with an error each."""
        self._reading.interrupt(error)

    async def _received(self, receive: Receive) -> AsyncIterator[bytes]:
        """Yields the body as it arrives."""
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            size += len(message["body"])
            self._check(size)
            yield message["body"]
            more = message["more_body"]

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise RequestTooLarge(f"the body has more than {self._max_bytes} bytes; send less per request")


class _Gunzip:
    """Unpacks gzip data as it arrives, in pieces of limited size."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP)

    @property
    def is_complete(self) -> bool:
        return self._stream.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields what the data unpacks to. Raises `RequestMalformed` if it is not gzip data."""
        try:
            while True:
                if self._stream.eof and data:  # another member follows
                    self._stream = zlib.decompressobj(_GZIP)
                unpacked = self._stream.decompress(data, _UNPACK_BYTES)
                yield unpacked
                data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
                if not data and len(unpacked) < _UNPACK_BYTES:
                    return
        except zlib.error:
            raise RequestMalformed("the body is not gzip data, as its header content-encoding says") from None


def _unpacker(headers: Headers) -> _Gunzip | None:
    """Returns what unpacks the body; None if it is not packed."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        return _Gunzip()
    if encoding in ("identity", ""):
        return None
    raise MediaTypeUnsupported(
        f"content-encoding {shortened(encoding)!r} is not supported; send gzip, or the body as it is"
    )
