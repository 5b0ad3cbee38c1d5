"""The methods of the gRPC port, in a table for each service. A method without a row is refused."""

from __future__ import annotations

from collections.abc import Mapping

from alignserve.v1 import align_service_pb2 as pb
from grpc_health.v1 import health_pb2

from alignserve_server.api import ANY_SCOPE, MethodRules, Scope

API = pb.DESCRIPTOR.services_by_name["AlignService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
SERVICE, HEALTH_SERVICE = API.full_name, HEALTH.full_name
_REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_EMBED_OR_CLASSIFY = frozenset({Scope.EMBED, Scope.CLASSIFY})

API_METHODS = {
    "EmbedImage": MethodRules(scopes=frozenset({Scope.EMBED})),
    "EmbedText": MethodRules(scopes=frozenset({Scope.EMBED})),
    "Classify": MethodRules(scopes=frozenset({Scope.CLASSIFY})),
    "Compare": MethodRules(scopes=_EMBED_OR_CLASSIFY),
    "EmbedQuery": MethodRules(scopes=frozenset({Scope.EMBED})),
    # Either scope opens a stream; each item is checked for its own.
    "StreamInfer": MethodRules(scopes=_EMBED_OR_CLASSIFY, counts_items=True),
    "GetModelInfo": MethodRules(scopes=ANY_SCOPE),
}
# Orchestrators and load balancers have no key, and their frequent checks would drown useful spans.
_HEALTH_METHODS = {
    "Check": MethodRules(scopes=None, is_metered=False, is_traced=False),
    "List": MethodRules(scopes=None, is_metered=False, is_traced=False),
    "Watch": MethodRules(scopes=None, is_metered=False, is_traced=False, ends_at_drain=True),
}
# Without quotas: tools use it along with the call that they are about to make, which could otherwise exceed
# the quota.
_REFLECTION_METHODS = {
    "ServerReflectionInfo": MethodRules(
        scopes=ANY_SCOPE, is_metered=False, is_traced=False, ends_at_drain=True
    ),
}

Methods = Mapping[str, Mapping[str, MethodRules]]  # by service and name

METHODS: Methods = {
    SERVICE: API_METHODS,
    HEALTH_SERVICE: _HEALTH_METHODS,
    **dict.fromkeys(_REFLECTION_SERVICES, _REFLECTION_METHODS),
}


def split_path(method: str) -> tuple[str, str]:
    """Splits a method's path, `/SERVICE/NAME`, into service and name."""
    service, _, name = method.removeprefix("/").rpartition("/")
    return service, name


def rules_of(method: str, methods: Methods = METHODS) -> MethodRules | None:
    """Returns the row of a method; None if it has none."""
    service, name = split_path(method)
    return methods.get(service, {}).get(name)
