"""Checks whether a server is ready, by grpc.health.v1.

This does without the package grpcio-health-checking: a request is one string and a response one number, both
in field 1, and protobuf's wrapper types have the same form on the wire. A second definition of the health
messages would clash with that package's if both are loaded.
"""

from __future__ import annotations

import grpc
from google.protobuf import wrappers_pb2

from alignserve._channel import SERVICE
from alignserve.errors import AlignserveError, DeadlineExceededError, UnavailableError

HEALTH_SERVICE = "grpc.health.v1.Health"
CHECK = f"/{HEALTH_SERVICE}/Check"
SERVICE_NAME = SERVICE.full_name  # the service whose health is checked
POLL_SECONDS = 0.2  # between health checks of a server that is not ready

_SERVING = 1  # grpc.health.v1.HealthCheckResponse.SERVING
_NOT_READY_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.NOT_FOUND,  # the health service starts before the service it reports on
)


def encode_request(service: str) -> bytes:
    """Returns a HealthCheckRequest."""
    return wrappers_pb2.StringValue(value=service).SerializeToString()


def decode_is_serving(response: bytes) -> bool:
    """Returns whether a HealthCheckResponse reports SERVING."""
    return wrappers_pb2.Int32Value.FromString(response).value == _SERVING


def check_means_not_ready(error: AlignserveError) -> bool:
    """Returns if a missing or unready server can cause the error, and raises any other error."""
    if error.code in _NOT_READY_CODES:
        return True
    raise error


def not_serving(target: str) -> AlignserveError:
    """Returns the error for a server that reports that it is not serving."""
    return UnavailableError(
        f"the server at {target} is not ready: it is loading its model, stopping or stalled; see its log",
        grpc.StatusCode.UNAVAILABLE,
        "NOT_SERVING",
    )


def not_ready(target: str, timeout_seconds: float, cause: str | None) -> AlignserveError:
    """Returns the error for a server that was not ready in time; `cause` says why there is no connection."""
    waited = f"{timeout_seconds:g} s"
    advice = "check that it is running and has its model"
    return DeadlineExceededError(
        f"{cause} (waited {waited})" if cause else f"no ready server at {target} within {waited}; {advice}",
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "NOT_READY",
    )
