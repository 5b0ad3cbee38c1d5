"""A `ServingError` on the wire: code, details and trailers."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import pytest
from alignserve_server.errors import (
    ExpiredInQueue,
    ImageUnreadable,
    InferenceFailed,
    InvalidArgument,
    ModelLoading,
    ModelStalled,
    QueueFull,
    QuotaExceeded,
    ServingError,
    StreamAged,
    TextTooLong,
    WouldMissDeadline,
    all_valid,
)
from alignserve_server.rpc.status import to_grpc_status, to_status_proto
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

PUSHBACK = "grpc-retry-pushback-ms"


def _detail(status: status_pb2.Status, kind: type[Message]) -> Any:
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None


def _bad_images(count: int, message: str) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as raised:
        all_valid([ImageUnreadable(message)] * count, "images[{}].content".format)
    return raised.value


def _size_on_the_wire(status: grpc.Status) -> int:
    """Returns the trailers' size in HTTP/2: names, values (binary ones in base64) and 32 bytes for each."""
    trailers = [("grpc-status", "0"), ("grpc-message", status.details), *status.trailing_metadata]
    return sum(
        len(key) + len(base64.b64encode(value) if isinstance(value, bytes) else value) + 32
        for key, value in trailers
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TextTooLong("text has 81 tokens, limit 64"), grpc.StatusCode.INVALID_ARGUMENT),
        (QueueFull("queue is full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (ModelLoading("model is loading"), grpc.StatusCode.UNAVAILABLE),
        (ExpiredInQueue("too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (InferenceFailed("the model failed"), grpc.StatusCode.INTERNAL),
    ],
)
def test_code_and_message_are_those_of_the_error(error: ServingError, code: grpc.StatusCode) -> None:
    """The call ends with the same code and message as in the status details."""
    status = to_grpc_status(error)
    proto = to_status_proto(error)

    assert (status.code, status.details) == (code, error.message)
    assert (proto.code, proto.message) == (code.value[0], error.message)


def test_error_info_is_for_programs() -> None:
    """Reason, domain and metadata identify the error, so programs need not parse the message."""
    status = to_status_proto(InferenceFailed("the model failed", metadata={"error_id": "0123"}))

    assert _detail(status, error_details_pb2.ErrorInfo) == error_details_pb2.ErrorInfo(
        reason="INFERENCE_FAILED", domain="alignserve.v1", metadata={"error_id": "0123"}
    )


def test_the_trailers_carry_the_whole_status() -> None:
    """Clients find code, message and details in `grpc-status-details-bin`."""
    error = _bad_images(2, "image is broken")

    trailers = dict(to_grpc_status(error).trailing_metadata)

    assert status_pb2.Status.FromString(trailers["grpc-status-details-bin"]) == to_status_proto(error)


def test_bad_request_names_each_field() -> None:
    """It has the path, description and reason of every violation."""
    bad_request = _detail(to_status_proto(_bad_images(2, "image is broken")), error_details_pb2.BadRequest)

    assert [(each.field, each.description, each.reason) for each in bad_request.field_violations] == [
        ("images[0].content", "image is broken", "IMAGE_UNREADABLE"),
        ("images[1].content", "image is broken", "IMAGE_UNREADABLE"),
    ]


@pytest.mark.parametrize("error", [QueueFull("queue is full"), InvalidArgument("top_k is negative")])
def test_without_violations_there_is_no_bad_request(error: ServingError) -> None:
    """An empty detail would be useless."""
    assert _detail(to_status_proto(error), error_details_pb2.BadRequest) is None


@pytest.mark.parametrize(("count", "named"), [(1, 1), (15, 15), (16, 16), (17, 16), (1000, 16)])
def test_bad_request_is_capped(count: int, named: int) -> None:
    """It names the first invalid fields, and the message has their total number."""
    status = to_status_proto(_bad_images(count, "image is broken"))

    bad_request = _detail(status, error_details_pb2.BadRequest)
    assert [each.field for each in bad_request.field_violations] == [
        f"images[{position}].content" for position in range(named)
    ]
    assert count == 1 or status.message.endswith(f"(and {count - 1} more)")


@pytest.mark.parametrize(("length", "kept"), [(511, 511), (512, 512), (513, 512), (100_000, 512)])
def test_a_long_message_is_cut(length: int, kept: int) -> None:
    """A message that is too long for trailers is truncated."""
    status = to_status_proto(InferenceFailed("x" * length))

    assert status.message == "x" * kept


@pytest.mark.parametrize("character", ["x", "ß", "猫"])
def test_trailers_of_64_bad_images_pass_common_proxies(character: str) -> None:
    """Even with messages far longer than any that the server writes, trailers stay under 8 KiB."""
    error = _bad_images(64, character * 1000)

    size = _size_on_the_wire(to_grpc_status(error))

    assert size < 8 * 1024


@pytest.mark.parametrize(
    ("delay", "dice", "milliseconds"),
    [(4.0, 0.0, 4000), (4.0, 0.5, 4500), (4.0, 0.999_999, 5000), (0.0, 0.5, 0), (None, 0.0, 1000)],
    ids=["least", "middle", "most", "at once", "unknown"],
)
def test_the_retry_delay_is_extended_by_up_to_a_quarter(
    monkeypatch: pytest.MonkeyPatch, delay: float | None, dice: float, milliseconds: int
) -> None:
    """Callers that were refused together do not retry together, and none too early; the default is 1 s."""
    monkeypatch.setattr("random.random", lambda: dice)

    status = to_status_proto(QueueFull("queue is full", retry_delay_seconds=delay))

    retry = _detail(status, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == milliseconds


@pytest.mark.parametrize("error", [ModelLoading("loading", retry_delay_seconds=7.0), ModelStalled("stalled")])
def test_pushback_equals_retry_info(error: ServingError) -> None:
    """gRPC's built-in retries wait exactly as long as a client that reads RetryInfo."""
    trailers = dict(to_grpc_status(error).trailing_metadata)

    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    retry = _detail(status, error_details_pb2.RetryInfo)
    delay = error.retry_delay_seconds or 1.0
    assert trailers[PUSHBACK] == str(retry.retry_delay.ToMilliseconds())
    assert 1000 * delay <= int(trailers[PUSHBACK]) <= 1250 * delay


def test_pushback_is_never_0() -> None:
    """With 0, gRPC core would never retry the call."""
    error = StreamAged()

    status = to_grpc_status(error)

    assert error.retry_delay_seconds == 0.0
    assert dict(status.trailing_metadata)[PUSHBACK] == "1"


@pytest.mark.parametrize("kind", [QueueFull, QuotaExceeded])
def test_a_full_server_leaves_retries_to_the_client(kind: type[ServingError]) -> None:
    """A delay would make grpc-java and .NET wait and retry, even if their policy does not name the code."""
    error = kind("no room", retry_delay_seconds=7.0)

    status = to_grpc_status(error)

    assert PUSHBACK not in dict(status.trailing_metadata)
    assert _detail(to_status_proto(error), error_details_pb2.RetryInfo) is not None


def test_a_call_that_would_miss_its_deadline_is_not_retried_within_it() -> None:
    """-1 stops built-in retries, even if the policy names the code; RetryInfo is for a new call."""
    error = WouldMissDeadline("too late", retry_delay_seconds=7.0)

    status = to_grpc_status(error)

    assert dict(status.trailing_metadata)[PUSHBACK] == "-1"
    retry = _detail(to_status_proto(error), error_details_pb2.RetryInfo)
    assert 7.0 <= retry.retry_delay.ToMilliseconds() / 1000 <= 8.75


@pytest.mark.parametrize("error", [InferenceFailed("the model failed"), TextTooLong("too long")])
def test_errors_that_are_not_retryable_have_no_delay(error: ServingError) -> None:
    """There is neither RetryInfo nor pushback."""
    error.retry_delay_seconds = 1.0

    status = to_grpc_status(error)

    assert PUSHBACK not in dict(status.trailing_metadata)
    assert _detail(to_status_proto(error), error_details_pb2.RetryInfo) is None
