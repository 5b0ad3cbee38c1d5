"""The protocol's messages stay out of the default descriptor pool."""

from __future__ import annotations

import pytest
from alignserve_server.kserve.messages import POOL, SERVICE
from alignserve_server.kserve.methods import METHODS
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto


def test_another_copy_of_the_protocol_can_be_loaded() -> None:
    """A program may load tritonclient's copy, which has the same names, before or after the server."""
    theirs = FileDescriptorProto(name="grpc_service.proto", package="inference")
    theirs.message_type.add(name="ServerLiveRequest")

    descriptor_pool.Default().AddSerializedFile(theirs.SerializeToString())

    assert POOL.FindMessageTypeByName("inference.ServerLiveRequest").file.name == "open_inference.proto"
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")


def test_every_method_has_a_row() -> None:
    """A method without a row is refused."""
    assert METHODS[SERVICE.full_name].keys() == {method.name for method in SERVICE.methods}
