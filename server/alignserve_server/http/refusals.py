"""Refusals that only HTTP has: each with the status that it is sent with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from alignserve_server.errors import InvalidArgument, ServingError

_MAX_ECHOED_CHARACTERS = 100


class PathUnknown(ServingError):
    """Nothing is served at the path."""

    code = "UNIMPLEMENTED"  # as gRPC calls an unknown method
    reason = "PATH_UNKNOWN"
    http_status: ClassVar[int] = 404


class MethodNotAllowed(ServingError):
    """The path is served, but not with this HTTP method."""

    code = "UNIMPLEMENTED"
    reason = "METHOD_NOT_ALLOWED"
    http_status: ClassVar[int] = 405

    def __init__(self, method: str, allowed: Iterable[str]) -> None:
        self.allow = ", ".join(allowed)
        super().__init__(f"method {shortened(method)!r} is not allowed here; use {self.allow}")


class RequestTooLarge(InvalidArgument):
    """The body is larger than the limit, as received or unpacked."""

    code = "RESOURCE_EXHAUSTED"  # as gRPC reports it
    reason = "REQUEST_TOO_LARGE"
    http_status: ClassVar[int] = 413


class MediaTypeUnsupported(InvalidArgument):
    """The path does not accept bodies of this type, or not in this encoding."""

    reason = "MEDIA_TYPE_UNSUPPORTED"
    http_status: ClassVar[int] = 415


def shortened(text: str, limit: int = _MAX_ECHOED_CHARACTERS) -> str:
    """Returns the start of what a caller sent, to be repeated in a message."""
    return text if len(text) <= limit else f"{text[:limit]}…"


class DeadlineExceeded(ServingError):
    """The caller's timeout ended while the model was already at work."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class CompressionUnsupported(ServingError):
    """A message is compressed in a way that the server does not read."""

    code = "UNIMPLEMENTED"
    reason = "COMPRESSION_UNSUPPORTED"


class StreamUnsupported(ServingError):
    """The protocol of the call cannot carry this stream."""

    code = "UNIMPLEMENTED"
    reason = "STREAM_UNSUPPORTED"
