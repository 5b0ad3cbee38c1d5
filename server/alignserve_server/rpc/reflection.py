"""Server reflection under both names: `v1`, which tools try first, and `v1alpha`.

grpcio-reflection implements only `v1alpha`. `v1` has the same messages in a package of another name
(https://github.com/grpc/grpc-proto/blob/master/grpc/reflection/v1/reflection.proto), so one servicer handles
both, and the descriptor of `v1` is derived from that of `v1alpha`.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_V1_SERVICE = f"{_V1}.ServerReflection"


def add_reflection_to(server: grpc.aio.Server, services: Iterable[str]) -> list[ServiceDescriptor]:
    """Adds reflection to a server, for these services and for reflection itself.

    Returns:
        The reflection services.
    """
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(_v1_file().SerializeToString())
    servicer = reflection.aio.ReflectionServicer((*services, _V1_SERVICE, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    info = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": info}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_V1_SERVICE, handlers),))
    server.add_registered_method_handlers(_V1_SERVICE, handlers)
    return [pool.FindServiceByName(name) for name in (reflection.SERVICE_NAME, _V1_SERVICE)]


def _v1_file() -> FileDescriptorProto:
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _V1
    for field in (field for message in file.message_type for field in message.field):
        if field.type_name:
            field.type_name = _renamed(field.type_name)
    for method in (method for service in file.service for method in service.method):
        method.input_type, method.output_type = _renamed(method.input_type), _renamed(method.output_type)
    return file


def _renamed(type_name: str) -> str:
    return type_name.replace(_V1ALPHA, _V1)
