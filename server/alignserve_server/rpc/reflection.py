"""Server reflection under both names: `v1`, which tools try first, and `v1alpha`.

grpcio-reflection implements only `v1alpha`. `v1` has the same messages in a package of another name
(https://github.com/grpc/grpc-proto/blob/master/grpc/reflection/v1/reflection.proto), so one servicer handles
both, and the descriptor of `v1` is derived from that of `v1alpha`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_V1_SERVICE = f"{_V1}.ServerReflection"


def add_reflection_to(
    server: grpc.aio.Server,
    services: Iterable[str],
    pools: Sequence[descriptor_pool.DescriptorPool] = (),
) -> list[ServiceDescriptor]:
    """Adds reflection to a server, for these services and for reflection itself.

    Args:
        server: The server.
        services: The services' full names.
        pools: Descriptor pools that are searched before the default one.

    Returns:
        The reflection services.
    """
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(_v1_file().SerializeToString())
    names = (*services, _V1_SERVICE, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(names, _Pools(pools))
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


class _Pools:
    """Several descriptor pools, as the one that the servicer takes. Only the default one has extensions."""

    def __init__(self, pools: Sequence[descriptor_pool.DescriptorPool]) -> None:
        default = descriptor_pool.Default()
        self._pools = (*pools, default)
        self.FindMessageTypeByName = default.FindMessageTypeByName
        self.FindExtensionByNumber = default.FindExtensionByNumber
        self.FindAllExtensions = default.FindAllExtensions

    def FindFileByName(self, name: str) -> FileDescriptor:
        return self._find(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, name: str) -> FileDescriptor:
        return self._find(lambda pool: pool.FindFileContainingSymbol(name))

    def _find(self, look_up: Callable[[descriptor_pool.DescriptorPool], FileDescriptor]) -> FileDescriptor:
        """Returns what the first pool that has it returns. Raises KeyError if none has it."""
        *others, last = self._pools
        for pool in others:
            with suppress(KeyError):
                return look_up(pool)
        return look_up(last)


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
