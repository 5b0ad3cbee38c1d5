"""Parses the requests of a method, unless they have absurdly many fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from alignserve_server.errors import BatchTooLarge, RequestMalformed
from alignserve_server.rpc.field_count import SMALL_BYTES, has_more_fields


class RequestParser:
    """Parses the requests of one method."""

    def __init__(self, parse: Callable[[bytes], Any], path: str, max_fields: int) -> None:
        """Takes how to parse a message.

        Args:
            parse: `FromString` of the request's class, or another function.
            path: The method's path, for errors.
            max_fields: Maximum number of fields in a message that is not small.
        """
        message = getattr(parse, "__self__", None)
        self._message: Descriptor | None = getattr(message, "DESCRIPTOR", None)
        self._parse = parse
        self._path = path
        self._max_fields = max_fields

    def parse(self, message: bytes) -> Any:
        """Returns the request.

        Raises:
            BatchTooLarge: It has too many fields.
            RequestMalformed: It is not a message of the method.
        """
        limit = self._max_fields
        if len(message) > SMALL_BYTES and has_more_fields(message, self._message, limit):
            raise BatchTooLarge(
                f"the request has more than {limit} images, texts, labels and other fields; send fewer per "
                "request"
            )
        try:
            return self._parse(message)
        except (DecodeError, UnicodeDecodeError):
            raise RequestMalformed(
                f"the request is not a valid message of {self._path}; use stubs generated from its proto"
            ) from None
