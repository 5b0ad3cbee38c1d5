"""Statuses become exceptions."""

from __future__ import annotations

import pickle

import alignserve
import grpc
import pytest
from alignserve import FieldViolation
from alignserve.errors import error_at_positions, error_from_call, error_from_status, errors_of_items
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

FULL = alignserve.InvalidArgumentError(
    "images[3].content: unreadable",
    grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_UNREADABLE",
    [FieldViolation("images[3].content", "unreadable", "IMAGE_UNREADABLE")],
    1.5,
    "e1",
)


def rich_status() -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="IMAGE_UNREADABLE", metadata={"error_id": "e1"})
    bad_request = error_details_pb2.BadRequest()
    bad_request.field_violations.add(
        field="images[3].content", description="unreadable", reason="IMAGE_UNREADABLE"
    )
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    status = status_pb2.Status(code=3, message="images[3].content: unreadable")
    for detail in (info, bad_request, retry):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def ended(code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, bytes], ...]) -> grpc.RpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=details)


def test_a_status_carries_every_detail() -> None:
    """The exception has the status's code, reason, fields, delay and error id."""
    error = error_from_status(rich_status())

    assert type(error) is alignserve.InvalidArgumentError
    assert error.args == FULL.args


def test_a_call_carries_its_status_in_the_trailers() -> None:
    """The error of a call has the details from its trailing metadata."""
    trailer = ("grpc-status-details-bin", rich_status().SerializeToString())

    error = error_from_call(ended(grpc.StatusCode.INVALID_ARGUMENT, "flat", (trailer,)))

    assert error.args == FULL.args


@pytest.mark.parametrize(
    "trailers",
    [(), (("grpc-status-details-bin", b"\xff\xff"),), (("other-bin", b"x"),)],
    ids=["absent", "malformed", "unrelated"],
)
def test_a_call_without_readable_details_has_code_and_message(
    trailers: tuple[tuple[str, bytes], ...],
) -> None:
    """Without details, as from proxies, the error still has the right class."""
    error = error_from_call(ended(grpc.StatusCode.UNAVAILABLE, "gone", trailers))

    assert type(error) is alignserve.UnavailableError
    assert (error.message, error.reason, error.violations, error.retry_delay_seconds) == (
        "gone",
        "",
        (),
        None,
    )


def test_details_of_another_status_are_ignored() -> None:
    """A proxy that replaces the status and keeps the trailers does not mislead."""
    trailer = ("grpc-status-details-bin", rich_status().SerializeToString())

    error = error_from_call(ended(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", (trailer,)))

    assert type(error) is alignserve.DeadlineExceededError
    assert error.message == "too late"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, alignserve.ResourceExhaustedError),
        (grpc.StatusCode.CANCELLED, alignserve.CallCancelledError),
        (grpc.StatusCode.UNAUTHENTICATED, alignserve.UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, alignserve.PermissionDeniedError),
        (grpc.StatusCode.INTERNAL, alignserve.InternalError),
        (grpc.StatusCode.UNIMPLEMENTED, alignserve.AlignserveError),
    ],
)
def test_each_code_has_its_class(code: grpc.StatusCode, kind: type[Exception]) -> None:
    """A code without its own class gives the base class."""
    assert type(error_from_status(status_pb2.Status(code=code.value[0]))) is kind


def test_str_names_code_reason_and_error_id() -> None:
    """The text of an error is enough to find its cause."""
    assert str(FULL) == "images[3].content: unreadable [INVALID_ARGUMENT IMAGE_UNREADABLE, error id e1]"


def test_errors_survive_pickling() -> None:
    """An error crosses a process boundary whole."""
    copy = pickle.loads(pickle.dumps(FULL))  # noqa: S301 — our own bytes

    assert type(copy) is type(FULL)
    assert copy.args == FULL.args


def test_positions_are_those_of_the_callers_list() -> None:
    """The error of a later part of a split list names the position in the whole list."""
    error = error_at_positions(FULL, [64, 65, 66, 90])

    assert error.message == "images[90].content: unreadable"
    assert error.violations[0].field == "images[90].content"


def test_each_item_at_fault_has_an_error_of_its_own() -> None:
    """An error that names several items gives one error for each; fields that are not items are left out."""
    violations = [
        FieldViolation("images[3].content", "broken", "IMAGE_UNREADABLE"),
        FieldViolation("images[12].content", "too large", "IMAGE_TOO_LARGE"),
        FieldViolation("labels[5]", "blank", "LABELS_INVALID"),
    ]
    error = alignserve.InvalidArgumentError(
        "two images", grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNREADABLE", violations
    )

    found = errors_of_items(error)

    assert {position: (each.message, each.reason) for position, each in found.items()} == {
        3: ("images[3].content: broken", "IMAGE_UNREADABLE"),
        12: ("images[12].content: too large", "IMAGE_TOO_LARGE"),
    }
