"""Converts a `ServingError` to google.rpc.Status, for the end of a call or within a stream.

The error details follow https://google.aip.dev/193.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from alignserve_server.errors import DOMAIN, FieldViolation, InvalidArgument, ServingError

# Common proxies drop trailers larger than 8 KiB, and clients do not accept more by default. These limits
# keep the total below that, even with the details in base64 and the message percent-encoded.
_MAX_VIOLATIONS = 16
_MAX_DESCRIPTION_BYTES = 160
_MAX_MESSAGE_BYTES = 512
REQUEST_ID = "request_id"  # in ErrorInfo.metadata
_MIN_PUSHBACK_MS = 1  # at 0, gRPC core (seen in 1.85) never retries, and the call hangs until its deadline
_JITTER = 0.25  # spreads the retries of callers that were refused together


def to_status_proto(error: ServingError, *, names_reason: bool = False) -> status_pb2.Status:
    """Builds the status with ErrorInfo, and BadRequest or RetryInfo where they apply.

    With `names_reason`, the message is `to_text`.
    """
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if isinstance(error, InvalidArgument) and error.violations:
        details.append(_bad_request(error))
    delay = retry_delay_seconds(error)
    if delay is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(delay)))
    status = status_pb2.Status(
        code=_code(error).value[0],  # (number, text)
        message=to_text(error) if names_reason else shown_message(error),
    )
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def to_text(error: ServingError) -> str:
    """Returns the reason, the request's id if the error has it, and the message, in one line of text."""
    request = error.metadata.get(REQUEST_ID)
    where = "" if request is None else f" (request {request!r})"
    return _cut(f"{error.reason}{where}: {error.message}", _MAX_MESSAGE_BYTES)


def to_grpc_status(error: ServingError, *, names_reason: bool = False) -> Any:
    """Builds the same status as trailing metadata, to end a call with.

    The retries that are built into gRPC clients obey `grpc-retry-pushback-ms` (gRFC A6).
    """
    proto = to_status_proto(error, names_reason=names_reason)
    status = rpc_status.to_status(proto)  # a namedtuple of code, details, trailing_metadata; typed as Any
    pushback = _pushback_ms(error, proto)
    if pushback is None:
        return status
    trailer = ("grpc-retry-pushback-ms", str(pushback))
    return status._replace(trailing_metadata=(*status.trailing_metadata, trailer))


def shown_message(error: ServingError) -> str:
    """Returns the message, cut to a length that fits into the metadata of an answer."""
    return _cut(error.message, _MAX_MESSAGE_BYTES)


def shown_violations(error: ServingError) -> list[FieldViolation]:
    """Returns the invalid fields, as many and as much of each as fit into the metadata of an answer."""
    return [
        replace(violation, description=_cut(violation.description, _MAX_DESCRIPTION_BYTES))
        for violation in error.violations[:_MAX_VIOLATIONS]
    ]


def _pushback_ms(error: ServingError, proto: status_pb2.Status) -> int | None:
    """Returns the delay for built-in retries; -1 forbids them, None leaves the decision to the client.

    Only UNAVAILABLE carries a delay: grpc-java and .NET retry any code that has one, even if their policy
    does not name it, so the caller of a full server would wait without knowing why. -1 costs a token of the
    client's retry throttling, so it is sent only where a retry would be useless even if the policy names the
    code.
    """
    if error.is_final_for_call:
        return -1
    if error.code != "UNAVAILABLE":
        return None
    retry = error_details_pb2.RetryInfo()
    delays = [retry.retry_delay.ToMilliseconds() for detail in proto.details if detail.Unpack(retry)]
    return max(delays[0], _MIN_PUSHBACK_MS) if delays else None


def _code(error: ServingError) -> grpc.StatusCode:
    return grpc.StatusCode[error.code]


def _bad_request(error: ServingError) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field, description=violation.description, reason=violation.reason
            )
            for violation in shown_violations(error)
        ]
    )


def _cut(text: str, max_bytes: int) -> str:
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")


def retry_delay_seconds(error: ServingError) -> float | None:
    """Returns the delay after which a call may be retried, spread at random; None if retries are useless."""
    if not error.is_retryable:
        return None
    delay = error.retry_delay_seconds if error.retry_delay_seconds is not None else 1.0
    return delay * (1.0 + _JITTER * random.random())  # noqa: S311 — not a secret


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
