"""A stream over HTTP/1.1: pieces of a body come in, and pieces of an answer go out at the same time.

Most clients read nothing before they have sent everything. So the input is taken in whether or not answers
are read, up to the maximum size of a request.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Receive, Send

from alignserve_server.errors import RequestTimeout, ServingError
from alignserve_server.http.answer import HeaderList
from alignserve_server.http.call import Disconnected, HttpCall
from alignserve_server.http.refusals import CompressionUnsupported, RequestTooLarge
from alignserve_server.http.rooms import AnswerTransport
from alignserve_server.http.sending import encoded_headers


class HttpStream:
    """The two directions of one stream."""

    def __init__(
        self,
        call: HttpCall,
        media_type: str,
        request_id: str,
        receive: Receive,
        send: Send,
        *,
        max_bytes: int,
        idle_timeout_seconds: float,
    ) -> None:
        self.media_type = media_type
        self._call = call
        self._request_id = request_id
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._idle_timeout_seconds = idle_timeout_seconds
        self._input: asyncio.Queue[bytes | ServingError | None] = asyncio.Queue()  # None ends it
        self._has_started = False

    @property
    def headers(self) -> Headers:
        """The headers, by names in any case."""
        return self._call.headers

    def transport(self, caller: str, max_response_bytes: int) -> AnswerTransport:
        """Returns what `MessageApi.stream` needs to know about the connection."""
        return AnswerTransport(self._call.headers, caller, max_response_bytes)

    def check_encoding(self) -> None:
        """Does nothing if the body is not packed. Raises `CompressionUnsupported` otherwise."""
        if self._call.headers.get("content-encoding", "identity") != "identity":
            raise CompressionUnsupported("the body of a stream must not be compressed")

    async def next_piece(self) -> bytes | None:
        """Returns the next piece of the body; None at its end.

        Raises:
            RequestTooLarge: It is larger than the maximum.
            RequestTimeout: The client sends nothing.
        """
        piece = await self._input.get()
        if isinstance(piece, ServingError):
            raise piece
        return piece

    async def take_in(self) -> Disconnected:
        """Receives the body; returns when the client has gone, and never otherwise."""
        size = 0
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_seconds):
                    message = await self._receive()
            except TimeoutError:
                return await self._stop(
                    RequestTimeout("no items come; end the stream, or send without delay")
                )
            if message["type"] == "http.disconnect":
                return Disconnected()
            size += len(message["body"])
            if size > self._max_bytes:
                return await self._stop(
                    RequestTooLarge(f"the stream has more than {self._max_bytes} bytes; use several")
                )
            self._input.put_nowait(message["body"])
            if not message["more_body"]:
                self._input.put_nowait(None)
                await self._receive()  # which waits for the end of the connection
                return Disconnected()

    async def _stop(self, error: ServingError) -> Disconnected:
        """Ends the input with an error; what the client still sends stays unread."""
        self._input.put_nowait(error)
        await asyncio.get_running_loop().create_future()
        raise AssertionError  # the wait never ends

    async def write(self, piece: bytes) -> None:
        """Sends a piece of the answer; returns when the next one can be sent."""
        await self._start()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self, piece: bytes, headers: HeaderList = ()) -> None:
        """Sends the last piece; the headers are sent if nothing was sent before."""
        await self._start(headers)
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def _start(self, headers: HeaderList = ()) -> None:
        if self._has_started:
            return
        self._has_started = True
        own = (("content-type", self.media_type), *headers)
        await self._send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": encoded_headers(self._request_id, own),
            }
        )
