"""StreamInfer by the Connect protocol.

| | |
|---|---|
| taken | POST with `application/connect+json` or `application/connect+proto`, up to the size of a request |
| refused | packed messages or bodies |
"""

from __future__ import annotations

from typing import Any

import orjson
from alignserve.v1 import align_service_pb2 as pb

from alignserve_server.api import CallScope
from alignserve_server.errors import RequestMalformed
from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.connect import (
    CONNECT,
    VERSION_HEADER,
    check_version,
    connect_error,
    read_json_message,
)
from alignserve_server.http.endpoint import StreamEndpoint
from alignserve_server.http.envelopes import Envelopes, enveloped
from alignserve_server.http.message_to_json import json_parts
from alignserve_server.http.status import HttpError
from alignserve_server.http.stream import HttpStream
from alignserve_server.http.timeouts import CONNECT_TIMEOUT_MS
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.methods import METHODS, SERVICE
from alignserve_server.rpc.request_parser import RequestParser

_METHOD = "StreamInfer"
_JSON, _PROTO = "application/connect+json", "application/connect+proto"
_MEDIA_TYPES = frozenset({_JSON, _PROTO})
_END = 0x02  # the flag of the last message


class ConnectStream:
    """The dialect: an error is the last message of an answer whose status is 200.

    A request of another type gets an error as other methods answer it.
    """

    name = "connect"
    prefixes: tuple[str, ...] = ()
    timeout_header = CONNECT_TIMEOUT_MS
    paths = FIELD_PATHS

    def error(self, error: HttpError) -> Answer:
        if error.media_type not in _MEDIA_TYPES:
            return CONNECT.error(error)
        end = enveloped(orjson.dumps({"error": connect_error(error)}), _END)
        return Answer(end, 200, error.media_type)


CONNECT_STREAM = ConnectStream()


class _Items:
    """The items of a stream, in the form that `MessageApi.stream` reads."""

    def __init__(self, stream: HttpStream, parser: RequestParser, max_fields: int) -> None:
        self._stream = stream
        self._envelopes = Envelopes()
        self._parser = parser
        self._max_fields = max_fields

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> Any:
        while (data := self._envelopes.next()) is None:
            piece = await self._stream.next_piece()
            if piece is None:
                if not self._envelopes.is_empty:
                    raise RequestMalformed("the body ends within a message")
                raise StopAsyncIteration
            self._envelopes.feed(piece)
        if self._stream.media_type == _PROTO:
            return self._parser.parse(data)
        return await read_json_message(pb.StreamInferRequest(), data, self._max_fields)


class StreamInfer:
    """Answers streams."""

    def __init__(self, messages: MessageApi, max_fields: int, max_response_bytes: int) -> None:
        self._messages = messages
        self._max_fields = max_fields
        self._max_response_bytes = max_response_bytes
        self._parser = RequestParser(pb.StreamInferRequest.FromString, f"/{SERVICE}/{_METHOD}", max_fields)

    def endpoint(self) -> StreamEndpoint:
        """Returns the endpoint."""
        return StreamEndpoint(
            f"/{SERVICE}/{_METHOD}",
            CONNECT_STREAM,
            _METHOD,
            METHODS[SERVICE][_METHOD],
            self._run,
            enveloped(b"{}", _END),
            _MEDIA_TYPES,
        )

    async def _run(self, stream: HttpStream, call: CallScope) -> None:
        check_version(stream.headers.get(VERSION_HEADER))
        stream.check_encoding()

        async def write(serialized: bytes) -> None:
            if stream.media_type == _JSON:
                answer = await Answer.in_parts(json_parts(pb.StreamInferResponse.FromString(serialized)))
                serialized = answer.body
            await stream.write(enveloped(serialized))

        items = _Items(stream, self._parser, self._max_fields)
        transport = stream.transport(call.caller_name, self._max_response_bytes)
        await self._messages.stream(items, write, transport, call)
