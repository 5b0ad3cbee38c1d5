"""Turns failures into statuses with details, as the server does."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from alignserve._fake.script import ScriptedFailure

_DOMAIN = "alignserve.v1"
_MAX_VIOLATIONS = 16  # as in the server


def status_of(failure: ScriptedFailure) -> status_pb2.Status:
    """Returns the status with its details."""
    details: list[Message] = [*_info(failure), *_bad_request(failure), *_retry_info(failure)]
    return status_pb2.Status(
        code=failure.code.value[0],
        message=failure.status_message,
        details=[_packed(detail) for detail in details],
    )


def abort(context: Any, failure: ScriptedFailure) -> NoReturn:
    """Ends a call."""
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", status_of(failure).SerializeToString())
    ]
    pushback_ms = _pushback_ms(failure)
    if pushback_ms is not None:
        trailers.append(("grpc-retry-pushback-ms", str(pushback_ms)))
    context.set_trailing_metadata(trailers)
    context.abort(failure.code, failure.status_message)
    raise AssertionError  # not reached: abort raises


def _pushback_ms(failure: ScriptedFailure) -> int | None:
    if failure.pushback_ms is not None:
        return failure.pushback_ms
    if failure.reason == "WOULD_MISS_DEADLINE":
        return -1
    # With other codes a pushback would make some clients retry when they should not.
    if failure.retry_delay_seconds is None or failure.code is not grpc.StatusCode.UNAVAILABLE:
        return None
    return max(1, round(failure.retry_delay_seconds * 1000))  # at 0, gRPC's core never starts the retry


def _info(failure: ScriptedFailure) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=failure.reason, domain=_DOMAIN)
    if failure.error_id:
        info.metadata["error_id"] = failure.error_id
    return [info]


def _bad_request(failure: ScriptedFailure) -> list[Message]:
    if not failure.field:
        return []
    bad_request = error_details_pb2.BadRequest()
    for each in (failure, *failure.others)[:_MAX_VIOLATIONS]:
        bad_request.field_violations.add(field=each.field, description=each.message, reason=each.reason)
    return [bad_request]


def _retry_info(failure: ScriptedFailure) -> list[Message]:
    if failure.retry_delay_seconds is None:
        return []
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(round(failure.retry_delay_seconds * 1000))
    return [retry]


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
