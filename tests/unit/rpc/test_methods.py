"""Every method of the gRPC port has a row in a table."""

from __future__ import annotations

import pytest
from alignserve_server.rpc.methods import API, HEALTH, METHODS, rules_of
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2

REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


@pytest.mark.parametrize("service", [API, HEALTH, REFLECTION], ids=lambda service: service.name)
def test_every_method_has_a_row(service: ServiceDescriptor) -> None:
    """A new method of a service needs a new row."""
    named = {method.name for method in service.methods}

    assert named <= METHODS[service.full_name].keys()


def test_reflection_has_the_same_rows_under_both_names() -> None:
    """`v1` is `v1alpha` with another name."""
    rows = [METHODS[f"grpc.reflection.{version}.ServerReflection"] for version in ("v1", "v1alpha")]

    assert rows[0] is rows[1]


@pytest.mark.parametrize(
    "method", ["", "/", "EmbedText", "/EmbedText", "/alignserve.v1.AlignService/", "/a/b/EmbedText"]
)
def test_other_names_have_no_row(method: str) -> None:
    """Callers can send any method name."""
    assert rules_of(method) is None
