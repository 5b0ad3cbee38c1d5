"""Creates the metrics' series of every method and code before the first call."""

from __future__ import annotations

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from alignserve_server.api import Accounting, MethodMetrics, MethodRules, kinds_of_calls
from alignserve_server.errors import KeyInvalid, ScopeMissing, error_kinds
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc.methods import METHODS, Methods

_CODES = {"OK", "CANCELLED", *(kind.code for kind in error_kinds())}
_CODES_WITH_KEY = sorted(_CODES)
_CODES_WITHOUT_KEY = sorted(_CODES - {KeyInvalid.code, ScopeMissing.code})

_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


def rpc_type(*, request_streaming: bool, response_streaming: bool) -> str:
    """Returns the value of the label `grpc_type` for a method."""
    return _KINDS[request_streaming, response_streaming]


def methods_of(accounting: Accounting, service: ServiceDescriptor) -> dict[str, MethodMetrics]:
    """Prepares the metrics of all methods of a service, by name."""
    return {
        method.name: accounting.method(
            _rpc_type_of(method), service.full_name, method.name, METHODS[service.full_name][method.name]
        )
        for method in service.methods
    }


def expect_calls(metrics: Metrics, service: ServiceDescriptor, methods: Methods = METHODS) -> None:
    """Creates the series of each method of a service, for each code that its calls can end with."""
    for method in service.methods:
        rules = methods[service.full_name][method.name]
        metrics.expect_rpcs(
            (_rpc_type_of(method), service.full_name, method.name), codes_of(rules), kinds_of_calls(rules)
        )


def codes_of(rules: MethodRules) -> list[str]:
    """Returns the codes that a method's calls can end with."""
    return _CODES_WITHOUT_KEY if rules.scopes is None else _CODES_WITH_KEY


def _rpc_type_of(method: MethodDescriptor) -> str:
    return rpc_type(request_streaming=method.client_streaming, response_streaming=method.server_streaming)
