"""The exceptions that a call can raise.

AlignserveError
├── InvalidArgumentError    the input can never succeed as it is
├── ResourceExhaustedError  the server is full, or a proxy limits calls
├── UnavailableError        no server, or it is starting or stopping
├── DeadlineExceededError   out of time
├── CallCancelledError      the call was cancelled on this side
├── UnauthenticatedError    credentials are missing or wrong
├── PermissionDeniedError   the credentials do not allow the call
└── InternalError           the server failed
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

__all__ = [
    "AlignserveError",
    "CallCancelledError",
    "DeadlineExceededError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
]

_DETAILS_KEY = "grpc-status-details-bin"
_POSITION = re.compile(r"\b(images|texts|pairs|queries)\[(\d+)\]")

_Detail = TypeVar("_Detail", bound=Message)
_Error = TypeVar("_Error", bound="AlignserveError")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that is invalid.

    Attributes:
        field: Path from the request, such as `images[3].content`.
        description: What is wrong with it.
        reason: Stable name of the fault, such as `IMAGE_UNREADABLE`. May be empty.
    """

    field: str
    description: str
    reason: str = ""


class AlignserveError(Exception):
    """A call or an item failed.

    Attributes:
        message: What happened and what to do, for people.
        code: The gRPC status code.
        reason: Stable name of the cause, such as `QUEUE_FULL`, for programs. Empty if the server sent none.
        violations: Fields at fault, for invalid arguments.
        retry_delay_seconds: How long to wait before a retry, or `None`.
        error_id: Identifies the error in the server's log. Empty if the server sent none.
        completed: For a list that failed, the results computed so far, by position in the list: embeddings,
            lists of classifications or comparisons. Empty for every other call.
    """

    completed: Mapping[int, Any]  # Any: the call's result for one item

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        violations: Iterable[FieldViolation] = (),
        retry_delay_seconds: float | None = None,
        error_id: str = "",
    ) -> None:
        violations = tuple(violations)
        # Pass everything as args: exceptions are pickled by their args, and worker processes pickle them.
        super().__init__(message, code, reason, violations, retry_delay_seconds, error_id)
        self.message = message
        self.code = code
        self.reason = reason
        self.violations = violations
        self.retry_delay_seconds = retry_delay_seconds
        self.error_id = error_id
        self.completed = {}

    def __str__(self) -> str:
        names = " ".join(name for name in (self.code.name, self.reason) if name)
        suffix = f", error id {self.error_id}" if self.error_id else ""
        return f"{self.message} [{names}{suffix}]"


class InvalidArgumentError(AlignserveError):
    """The input can never succeed as it is; `violations` names each field at fault."""


class ResourceExhaustedError(AlignserveError):
    """The server is full (then `retry_delay_seconds` is set), or a proxy limits calls."""


class UnavailableError(AlignserveError):
    """The server cannot be reached, or is starting, stopping or stalled."""


class DeadlineExceededError(AlignserveError):
    """The deadline of the call has passed."""


class CallCancelledError(AlignserveError):
    """The call was cancelled on this side, for example because its client was closed."""


class UnauthenticatedError(AlignserveError):
    """Credentials are missing or wrong."""


class PermissionDeniedError(AlignserveError):
    """The credentials do not allow the call."""


class InternalError(AlignserveError):
    """The server failed; `error_id` identifies the error in its log."""


_CLASSES: dict[grpc.StatusCode, type[AlignserveError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.INTERNAL: InternalError,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def error_from_status(status: status_pb2.Status) -> AlignserveError:
    """Returns the error that a google.rpc.Status describes."""
    info = _detail(status, error_details_pb2.ErrorInfo)
    bad_request = _detail(status, error_details_pb2.BadRequest)
    retry = _detail(status, error_details_pb2.RetryInfo)
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _CLASSES.get(code, AlignserveError)(
        status.message,
        code,
        reason=info.reason if info else "",
        violations=_violations(bad_request) if bad_request else (),
        retry_delay_seconds=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
        error_id=info.metadata.get("error_id", "") if info else "",
    )


def error_from_call(error: grpc.RpcError) -> AlignserveError:
    """Returns the error that ended a call, with the details from its trailing metadata, if any."""
    code: int = error.code().value[0]
    status = _status_in(error.trailing_metadata())
    if status is None or status.code != code:  # a proxy may have ended the call with its own status
        status = status_pb2.Status(code=code)
    status.message = status.message or error.details() or error.code().name
    return error_from_status(status)


def error_at_positions(error: AlignserveError, positions: Sequence[int]) -> AlignserveError:
    """Returns the error with positions in the caller's list; `positions` has those of the request's items."""

    def moved(text: str) -> str:
        return _POSITION.sub(lambda match: f"{match[1]}[{_at(positions, int(match[2]))}]", text)

    message = moved(error.message)
    violations = [replace(violation, field=moved(violation.field)) for violation in error.violations]
    if (message, violations) == (error.message, list(error.violations)):
        return error
    changed = type(error)(
        message,
        error.code,
        error.reason,
        violations,
        error.retry_delay_seconds,
        error.error_id,
    )
    changed.__cause__ = error.__cause__
    return changed


def errors_of_items(error: AlignserveError) -> dict[int, AlignserveError]:
    """Returns an error for each image, text, pair or query that the error names, by its position."""
    by_item: dict[int, list[FieldViolation]] = {}
    for violation in error.violations:
        if match := _POSITION.match(violation.field):
            by_item.setdefault(int(match[2]), []).append(violation)
    return {position: _error_of(found, error) for position, found in by_item.items()}


def without_frames(error: _Error) -> _Error:
    """Returns the error without its traceback, whose frames would keep the inputs in memory."""
    for each in (error, error.__cause__, error.__context__):
        if each is not None:
            each.__traceback__ = None
    return error


def _error_of(violations: Sequence[FieldViolation], error: AlignserveError) -> AlignserveError:
    first = violations[0]
    message = f"{first.field}: {first.description}"
    return type(error)(message, error.code, first.reason or error.reason, violations)


def _at(positions: Sequence[int], index: int) -> int:
    return positions[index] if index < len(positions) else index


def _violations(bad_request: error_details_pb2.BadRequest) -> tuple[FieldViolation, ...]:
    return tuple(
        FieldViolation(violation.field, violation.description, violation.reason)
        for violation in bad_request.field_violations
    )


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail | None:
    for packed in status.details:
        detail = kind()
        if packed.Is(detail.DESCRIPTOR):
            packed.Unpack(detail)
            return detail
    return None


def _status_in(trailers: Iterable[Any] | None) -> status_pb2.Status | None:
    # Any: pairs in grpc.aio, named tuples in grpc; both unpack alike.
    for key, value in trailers or ():
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None
