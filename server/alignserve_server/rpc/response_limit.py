"""The maximum size of a response: what the client accepts, and at most what the server sends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alignserve_server.errors import BatchTooLarge, InvalidArgument, LabelsInvalid
from alignserve_server.rpc.callers import Metadata
from alignserve_server.rpc.response_size import stream_response_bytes

MAX_RESPONSE_BYTES_KEY = "alignserve-max-response-bytes"
DEFAULT_MAX_RESPONSE_BYTES = 4 << 20  # gRPC's default in every language; clients discard larger responses

_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class ResponseLimit:
    """The maximum size of the response to a call or to an item of a stream."""

    max_bytes: int
    can_be_raised: bool  # by the client
    correlation_id: str | None = None  # of a stream item, whose response is wrapped in another message

    def for_item(self, correlation_id: str) -> ResponseLimit:
        """Returns the same limit for the message that contains the response to a stream item."""
        return ResponseLimit(self.max_bytes, self.can_be_raised, correlation_id)

    def check_embeddings(self, field: str, response_bytes: int) -> int:
        """Returns the size on the wire of a response, given its own size.

        Raises:
            BatchTooLarge: It is too large; `field` contains the items.
        """
        size = self._size(response_bytes)
        if size > self.max_bytes:
            raise BatchTooLarge.at(field, self._complaint(size, f"send fewer {field} per request"))
        return size

    def check_classifications(self, field: str, response_bytes: int) -> int:
        """Returns the size on the wire of a response, given its own size.

        Raises:
            LabelsInvalid: It is too large; `field` contains the labels.
        """
        size = self._size(response_bytes)
        if size > self.max_bytes:
            raise LabelsInvalid.at(field, self._complaint(size, "set top_k or send fewer images"))
        return size

    def _size(self, response_bytes: int) -> int:
        if self.correlation_id is None:
            return response_bytes
        return stream_response_bytes(self.correlation_id, response_bytes)

    def _complaint(self, size: int, remedy: str) -> str:
        also = f", or send the metadata {MAX_RESPONSE_BYTES_KEY}" if self.can_be_raised else ""
        return f"the response could have up to {size} bytes, limit {self.max_bytes}; {remedy}{also}"


def response_limit(metadata: Metadata, max_response_bytes: int) -> ResponseLimit:
    """Returns a call's limit: from its metadata, otherwise gRPC's default; at most what the server sends.

    Raises:
        InvalidArgument: The metadata is not a number of bytes.
    """
    accepted = _accepted_bytes(metadata)
    return ResponseLimit(min(accepted, max_response_bytes), accepted < max_response_bytes)


def _accepted_bytes(metadata: Metadata) -> int:
    for key, value in metadata:
        if key == MAX_RESPONSE_BYTES_KEY:
            if _NUMBER.fullmatch(str(value)) is None or int(value) == 0:
                raise InvalidArgument(
                    f"metadata {MAX_RESPONSE_BYTES_KEY}: invalid; send a number of bytes, such as 16777216"
                )
            return int(value)
    return DEFAULT_MAX_RESPONSE_BYTES
