"""Whether a server is ready, by grpc.health.v1.

The package grpcio-health-checking is not needed for it: a request is one string and a response one number,
both in field 1, and the wrapper types that come with protobuf have that same form on the wire. A second
definition of the health messages would clash with that package's where both are loaded.
"""

from __future__ import annotations

import grpc
from google.protobuf import wrappers_pb2

from alignserve._channel import SERVICE
from alignserve.errors import AlignserveError, DeadlineExceededError, UnavailableError

HEALTH_SERVICE = "grpc.health.v1.Health"
CHECK = f"/{HEALTH_SERVICE}/Check"
SERVICE_NAME = SERVICE.full_name  # the one asked about
POLL_SECONDS = 0.2  # between questions to a server that answers that it is not ready

_SERVING = 1  # grpc.health.v1.HealthCheckResponse.SERVING
_NOT_READY_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.NOT_FOUND,  # the health service is there before the service it speaks for
)


def encode_request(service: str) -> bytes:
    """Returns a HealthCheckRequest."""
    return wrappers_pb2.StringValue(value=service).SerializeToString()


def decode_is_serving(response: bytes) -> bool:
    """Says whether a HealthCheckResponse reports SERVING."""
    return wrappers_pb2.Int32Value.FromString(response).value == _SERVING


def check_means_not_ready(error: AlignserveError) -> bool:
    """Passes for an error that a missing or unready server causes, and raises any other."""
    if error.code in _NOT_READY_CODES:
        return True
    raise error


def not_serving(target: str) -> AlignserveError:
    """Returns the error for a server that answers that it does not serve."""
    return UnavailableError(
        f"the server at {target} is not ready: it loads its model, stops or has stalled; see its log",
        grpc.StatusCode.UNAVAILABLE,
        "NOT_SERVING",
    )


def not_ready(target: str, timeout_seconds: float, cause: str | None) -> AlignserveError:
    """Returns the error for a wait that was in vain; `cause` says why there is no connection."""
    advice = cause or "see that it runs and has its model"
    return DeadlineExceededError(
        f"no ready server at {target} within {timeout_seconds:g} s; {advice}",
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "NOT_READY",
    )
