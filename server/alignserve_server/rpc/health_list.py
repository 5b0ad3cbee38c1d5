"""The messages of grpc.health.v1's `List`, which some versions of grpcio-health-checking lack.

They are built from the fields in the proto, in a separate descriptor pool, so that they cannot collide with
those of the package. https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2

_PACKAGE = "grpc.health.v1"
_Field = descriptor_pb2.FieldDescriptorProto


def _build() -> dict[str, Any]:
    own = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/list.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[health_pb2.DESCRIPTOR.name],
    )
    own.message_type.add(name="HealthListRequest")
    response = own.message_type.add(name="HealthListResponse")
    response.field.add(
        name="statuses",
        number=1,
        label=_Field.LABEL_REPEATED,
        type=_Field.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.HealthListResponse.StatusesEntry",
    )
    entry = response.nested_type.add(name="StatusesEntry")  # how protobuf represents a map field
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    entry.field.add(
        name="value",
        number=2,
        label=_Field.LABEL_OPTIONAL,
        type=_Field.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.HealthCheckResponse",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(own)
    classes: dict[str, Any] = message_factory.GetMessageClassesForFiles([own.name], pool)
    return classes


# Any: classes created at run time have no types.
if hasattr(health_pb2, "HealthListResponse"):
    HealthListRequest: Any = health_pb2.HealthListRequest
    HealthListResponse: Any = health_pb2.HealthListResponse
else:
    _classes = _build()
    HealthListRequest = _classes[f"{_PACKAGE}.HealthListRequest"]
    HealthListResponse = _classes[f"{_PACKAGE}.HealthListResponse"]
