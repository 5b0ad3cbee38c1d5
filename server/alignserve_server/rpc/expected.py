"""The calls that can come and the codes they can end with, as series of the metrics before the first does."""

from __future__ import annotations

from itertools import product

from alignserve.v1 import align_service_pb2 as pb
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

from alignserve_server.errors import HealthServiceUnknown, KeyInvalid, ScopeMissing, error_kinds
from alignserve_server.observability.metrics import PRIORITIES, SIZES, Metrics

API = pb.DESCRIPTOR.services_by_name["AlignService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

_CODES = {"OK", "CANCELLED", *(kind.code for kind in error_kinds())}
API_CODES = sorted(_CODES - {HealthServiceUnknown.code})
HEALTH_CODES = sorted(_CODES - {KeyInvalid.code, ScopeMissing.code})  # it needs no key

_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


def rpc_type(*, request_streaming: bool, response_streaming: bool) -> str:
    """Returns the label `grpc_type` of a method."""
    return _KINDS[request_streaming, response_streaming]


def kinds_of_calls(service: str, *, request_streaming: bool) -> list[tuple[str, str]]:
    """Returns the priorities and sizes that calls of a method can have; a stream of items is a batch."""
    if service != API.full_name:
        return [(PRIORITIES[0], SIZES[0])]
    return list(product(PRIORITIES, SIZES[1:] if request_streaming else SIZES))


def expect_calls(metrics: Metrics, service: ServiceDescriptor, codes: list[str]) -> None:
    """Creates the series of each method of a service, and of each code that its calls can end with."""
    for method in service.methods:
        kind = rpc_type(request_streaming=method.client_streaming, response_streaming=method.server_streaming)
        kinds = kinds_of_calls(service.full_name, request_streaming=method.client_streaming)
        metrics.expect_rpcs((kind, service.full_name, method.name), codes, kinds)
