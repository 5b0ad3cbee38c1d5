"""The envelopes of messages in Connect's streams and gRPC-Web: a byte of flags, a length, the message."""

from __future__ import annotations

import struct

from alignserve_server.errors import RequestMalformed
from alignserve_server.http.refusals import CompressionUnsupported

HEAD = struct.Struct(">BI")
COMPRESSED = 0x01


def enveloped(data: bytes, flags: int = 0) -> bytes:
    """Returns a message in its envelope."""
    return HEAD.pack(flags, len(data)) + data


class Envelopes:
    """Takes messages out of bytes as they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left: no part of an envelope."""
        return not self._buffer

    def feed(self, data: bytes) -> None:
        """Adds bytes."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Returns the next complete message; None if more bytes are needed.

        Raises:
            CompressionUnsupported: It is compressed.
            RequestMalformed: It has other flags.
        """
        if len(self._buffer) < HEAD.size:
            return None
        flags, size = HEAD.unpack_from(self._buffer)
        if flags & COMPRESSED:
            raise CompressionUnsupported("messages must not be compressed; gzip the whole body instead")
        if flags:
            raise RequestMalformed(f"a message has the unknown flags {flags:#04x}")
        if len(self._buffer) < HEAD.size + size:
            return None
        message = bytes(self._buffer[HEAD.size : HEAD.size + size])
        del self._buffer[: HEAD.size + size]
        return message


def only_message(body: bytes) -> bytes:
    """Returns the message of a body that must have exactly one.

    Raises:
        RequestMalformed, CompressionUnsupported: It has not, or the message is not as it should be.
    """
    envelopes = Envelopes()
    envelopes.feed(body)
    message = envelopes.next()
    if message is None:
        raise RequestMalformed("the body has no complete message; send exactly one")
    if not envelopes.is_empty:
        raise RequestMalformed("the body has more than one message; send exactly one")
    return message
