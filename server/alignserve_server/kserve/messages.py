"""The protocol's messages, in a descriptor pool of their own.

The default pool takes each name once, and a program that embeds the server may have loaded another copy of
the protocol, such as that of tritonclient.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_FILES = "open_inference.binpb"  # written by `protos/generate.py`

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(resources.files(__package__).joinpath(_FILES).read_bytes()).file:
    POOL.Add(_file)
SERVICE = POOL.FindServiceByName("inference.GRPCInferenceService")


def message(name: str) -> Any:
    """Returns the class of a message of the protocol."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


ServerLiveResponse = message("ServerLiveResponse")
ServerReadyResponse = message("ServerReadyResponse")
ServerMetadataResponse = message("ServerMetadataResponse")
ModelReadyResponse = message("ModelReadyResponse")
ModelMetadataResponse = message("ModelMetadataResponse")
ModelConfigResponse = message("ModelConfigResponse")
ModelStatisticsResponse = message("ModelStatisticsResponse")
ModelInferRequest = message("ModelInferRequest")
ModelInferResponse = message("ModelInferResponse")
ModelStreamInferResponse = message("ModelStreamInferResponse")
