"""gRPC-Web, unary: binary, and base64 for clients that cannot read binary answers.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md

| | |
|---|---|
| taken | `application/grpc-web`, `application/grpc-web-text`, each also with `+proto`; gzip bodies |
| ignored | `grpc-accept-encoding`, `x-grpc-web`, `x-user-agent` |
| refused | packed messages, and StreamInfer: gRPC-Web has no client streams |
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from alignserve_server.api import CallScope
from alignserve_server.errors import RequestMalformed
from alignserve_server.http.answer import Answer
from alignserve_server.http.base64_text import decode_base64
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.envelopes import enveloped, only_message
from alignserve_server.http.refusals import StreamUnsupported
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import GRPC_TIMEOUT
from alignserve_server.rpc.convert import item_count
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.methods import API, METHODS, SERVICE
from alignserve_server.rpc.request_parser import RequestParser
from alignserve_server.rpc.status import to_status_proto

_PREFIX = "application/grpc-web"
_TEXT_PREFIX = "application/grpc-web-text"
_MEDIA_TYPES = frozenset(
    f"{prefix}{suffix}" for prefix in (_PREFIX, _TEXT_PREFIX) for suffix in ("", "+proto")
)
_PADDED = re.compile(rb"[^=]+=*")
_MAX_PADDING = 2048  # characters; a client pads each frame, or each piece that it sends
_TRAILERS = 0x80
_OK = enveloped(b"grpc-status: 0\r\n", _TRAILERS)


def is_grpc_web(media_type: str) -> bool:
    """Returns whether the body of a request is gRPC-Web."""
    return media_type.startswith(_PREFIX)


class GrpcWeb:
    """The dialect."""

    name = "grpc-web"
    prefixes: tuple[str, ...] = ()  # of unknown paths, `connect` answers those of this dialect too
    timeout_header = GRPC_TIMEOUT
    paths = FIELD_PATHS

    def error(self, error: HttpError) -> Answer:
        return grpc_web_error(error)


GRPC_WEB = GrpcWeb()


class GrpcWebMethod:
    """One unary method."""

    def __init__(self, method: MethodDescriptor, messages: MessageApi, max_fields: int) -> None:
        """Takes the method's description in the proto, and what answers its messages."""
        self._name: str = method.name
        self._messages = messages
        request = GetMessageClass(method.input_type)
        self._parser = RequestParser(request.FromString, f"/{SERVICE}/{method.name}", max_fields)

    async def answer(self, request: HttpRequest, call: CallScope) -> Answer:
        """Answers a call."""
        is_text = request.media_type.startswith(_TEXT_PREFIX)
        body = await asyncio.to_thread(_binary, request.body) if is_text else request.body
        message = self._parser.parse(only_message(body))
        del body
        request.release_body()
        call.items = item_count(message)
        response = await self._messages.answer(self._name, message, call, lambda: request.room)
        content = enveloped(response) + _OK
        return Answer(b64encode(content) if is_text else content, media_type=request.media_type)


def grpc_web_endpoints(messages: MessageApi, max_fields: int) -> Iterator[Endpoint]:
    """Yields the endpoints of all methods.

    Args:
        messages: Answers messages.
        max_fields: Maximum number of fields in a message that is not small.
    """
    for method in API.methods:
        is_unary = not (method.client_streaming or method.server_streaming)
        yield Endpoint(
            f"/{SERVICE}/{method.name}",
            ("POST",),
            GRPC_WEB,
            method.name,
            METHODS[SERVICE][method.name],
            GrpcWebMethod(method, messages, max_fields).answer if is_unary else _refuse_stream,
            _MEDIA_TYPES,
        )


def grpc_web_error(error: HttpError) -> Answer:
    """Returns an error as an answer without a body, whose trailers are among its headers."""
    status = to_status_proto(error.error)
    headers = (
        ("grpc-status", str(grpc.StatusCode[error.code].value[0])),  # (number, text)
        ("grpc-message", quote(status.message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~")),
        ("grpc-status-details-bin", b64encode(status.SerializeToString()).decode().rstrip("=")),
    )
    return Answer(b"", 200, error.media_type, headers)


async def _refuse_stream(request: HttpRequest, call: CallScope) -> Answer:  # noqa: ARG001 — an endpoint's answer
    raise StreamUnsupported("gRPC-Web cannot carry StreamInfer; use the unary methods, several at a time")


def _binary(text: bytes) -> bytes:
    """Decodes base64 of which each part may have been padded."""
    if text.count(b"=") > _MAX_PADDING:  # a million parts would take seconds
        raise RequestMalformed("the body is padded too often; encode each message as a whole")
    try:
        return b"".join(decode_base64(part) for part in _PADDED.findall(text))
    except ValueError:
        raise RequestMalformed("the body is not base64, as its content-type says") from None
