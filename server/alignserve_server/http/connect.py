"""The Connect protocol, unary: `alignserve.v1` as JSON and protobuf over plain HTTP.

https://connectrpc.com/docs/protocol

| | |
|---|---|
| taken | POST with `application/json` or `application/proto`; GET of methods without side effects; gzip |
| ignored | unknown JSON fields; `accept-encoding`, since answers are not packed |
| refused | unknown names of enum values, a `connect-protocol-version` other than 1, packed messages in GET |
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pool, json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from alignserve_server.api import CallScope
from alignserve_server.errors import InvalidArgument, RequestMalformed
from alignserve_server.http.answer import JSON, Answer
from alignserve_server.http.base64_text import decode_base64
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.grpc_web import grpc_web_error, is_grpc_web
from alignserve_server.http.json_to_message import fill_message
from alignserve_server.http.message_to_json import json_parts
from alignserve_server.http.refusals import CompressionUnsupported, shortened
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.strict_json import MAX_VALUES, parse_json
from alignserve_server.http.timeouts import CONNECT_TIMEOUT_MS
from alignserve_server.rpc.convert import item_count
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.methods import API, METHODS, SERVICE
from alignserve_server.rpc.request_parser import RequestParser
from alignserve_server.rpc.status import to_status_proto

PROTO = "application/proto"
VERSION_HEADER = "connect-protocol-version"

JSON_EXPANSION = 4  # a float has 4 bytes, and about 12 characters; a message and its JSON exist together
_SMALL_BYTES = 1 << 14  # a message up to this size is filled in a millisecond or two
_CODES = {"CANCELLED": "canceled"}  # the others have the same names, in lower case
_POOL = descriptor_pool.Default()


class Connect:
    """The dialect of the paths `/alignserve.v1.AlignService/…`, for all protocols that share them."""

    name = "connect"
    prefixes = (f"/{SERVICE}/",)
    timeout_header = CONNECT_TIMEOUT_MS
    paths = FIELD_PATHS

    def error(self, error: HttpError) -> Answer:
        if is_grpc_web(error.media_type):
            return grpc_web_error(error)
        return Answer.json(connect_error(error), error.status)


CONNECT = Connect()


class ConnectMethod:
    """One unary method."""

    def __init__(self, method: MethodDescriptor, messages: MessageApi, max_fields: int) -> None:
        """Takes the method's description in the proto, and what answers its messages."""
        self._name: str = method.name
        self._request = GetMessageClass(method.input_type)
        self._response = GetMessageClass(method.output_type)
        self._messages = messages
        self._parser = RequestParser(self._request.FromString, f"/{SERVICE}/{method.name}", max_fields)
        self._max_fields = max_fields
        self._has_side_effects = method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS

    def endpoints(self) -> Iterator[Endpoint]:
        """Yields the endpoints for POST, and for GET if the method has no side effects."""
        path, rules = f"/{SERVICE}/{self._name}", METHODS[SERVICE][self._name]
        media_types = frozenset({JSON, PROTO})
        yield Endpoint(path, ("POST",), CONNECT, self._name, rules, self._answer_post, media_types)
        if not self._has_side_effects:
            yield Endpoint(path, ("GET",), CONNECT, self._name, rules, self._answer_get, media_types)

    async def _answer_post(self, request: HttpRequest, call: CallScope) -> Answer:
        check_version(request.headers.get(VERSION_HEADER))
        message = await self._read(request.media_type, request.body)
        request.release_body()
        return await self._answer(request, message, call, request.media_type)

    async def _answer_get(self, request: HttpRequest, call: CallScope) -> Answer:
        check_version(request.query.get("connect", "v1").removeprefix("v"))
        media_type, data = _message_in(request)
        return await self._answer(request, await self._read(media_type, data), call, media_type)

    async def _read(self, media_type: str, data: bytes) -> Message:
        if media_type == PROTO:
            parsed: Message = self._parser.parse(data)
            return parsed
        return await read_json_message(self._request(), data, self._max_fields)

    async def _answer(
        self, request: HttpRequest, message: Message, call: CallScope, media_type: str
    ) -> Answer:
        call.items = item_count(message)
        if media_type == JSON:
            request.room.expand(JSON_EXPANSION)
        response = await self._messages.answer(self._name, message, call, lambda: request.room)
        if media_type == PROTO:
            return Answer(response, media_type=PROTO)
        return await Answer.in_parts(json_parts(self._response.FromString(response)))


def connect_endpoints(messages: MessageApi, max_fields: int) -> Iterator[Endpoint]:
    """Yields the endpoints of all unary methods.

    Args:
        messages: Answers messages.
        max_fields: Maximum number of fields in a message that is not small.
    """
    for method in API.methods:
        if not (method.client_streaming or method.server_streaming):
            yield from ConnectMethod(method, messages, max_fields).endpoints()


def connect_error(error: HttpError) -> dict[str, Any]:
    """Returns an error as the Connect protocol's JSON, with readable details."""
    return {
        "code": _CODES.get(error.code, error.code.lower()),
        "message": error.message,
        "details": [_detail(detail) for detail in to_status_proto(error.error).details],
    }


def check_version(version: str | None) -> None:
    """Does nothing if a call has the version of the protocol that is served, or names none.

    Raises:
        InvalidArgument: It has another one.
    """
    if version not in (None, "1"):
        raise InvalidArgument(f"header {VERSION_HEADER}: {shortened(str(version))!r} is unknown; send 1")


async def read_json_message(message: Message, data: bytes, max_fields: int) -> Message:
    """Fills an empty message from JSON. A large one is filled in a thread.

    Raises:
        RequestMalformed: It is not JSON, or not of this message.
        BatchTooLarge: It has more values than any valid request.
    """
    value = parse_json(data, max(MAX_VALUES, 4 * max_fields))
    if len(data) <= _SMALL_BYTES:
        fill_message(message, value)
    else:
        await asyncio.to_thread(fill_message, message, value)
    return message


def _message_in(request: HttpRequest) -> tuple[str, bytes]:
    """Returns the type and the bytes of the message in a GET request.

    Raises:
        InvalidArgument: There is none, or not in a form that is taken.
        CompressionUnsupported: It is packed.
    """
    query = request.query
    encoding, text = query.get("encoding"), query.get("message")
    if encoding not in ("json", "proto") or text is None:
        raise InvalidArgument("the query must have encoding=json or encoding=proto, and message")
    if query.get("compression", "identity") != "identity":
        raise CompressionUnsupported("messages in a query must not be compressed")
    media_type = JSON if encoding == "json" else PROTO
    if query.get("base64") != "1":
        return media_type, text.encode("latin-1")
    try:
        return media_type, decode_base64(text.encode("ascii"))
    except ValueError:
        raise RequestMalformed("the message in the query is not base64") from None


def _detail(packed: AnyMessage) -> dict[str, Any]:
    name = packed.type_url.rpartition("/")[2]
    detail = GetMessageClass(_POOL.FindMessageTypeByName(name)).FromString(packed.value)
    return {
        "type": name,
        "value": b64encode(packed.value).decode().rstrip("="),
        "debug": json_format.MessageToDict(detail),
    }
