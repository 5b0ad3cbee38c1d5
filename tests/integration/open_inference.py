"""A client of the Open Inference Protocol, with the server's own messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from alignserve_server.kserve import messages
from alignserve_server.kserve.tensors import join_bytes, split_bytes
from google.protobuf.message_factory import GetMessageClass

_NUMPY = {"FP32": "<f4", "FP16": "<f2", "INT32": "<i4"}


def call_of(channel: grpc.aio.Channel, name: str) -> Any:
    """Returns the callable of a method."""
    method = messages.SERVICE.methods_by_name[name]
    make = channel.stream_stream if method.client_streaming else channel.unary_unary
    return make(
        f"/{messages.SERVICE.full_name}/{name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )


def ask(channel: grpc.aio.Channel, method: str, **fields: Any) -> Any:
    """Calls a method with the fields of its request; returns the call."""
    request = GetMessageClass(messages.SERVICE.methods_by_name[method].input_type)
    return call_of(channel, method)(request(**fields))


def infer(channel: grpc.aio.Channel, request: Any, **options: Any) -> Any:
    """Calls ModelInfer; returns the call."""
    return call_of(channel, "ModelInfer")(request, **options)


def raw_request(model: str, inputs: Mapping[str, Sequence[bytes]], **fields: Any) -> Any:
    """Builds a request whose inputs are raw BYTES, as tritonclient does."""
    return messages.ModelInferRequest(
        model_name=model,
        inputs=[bytes_header(name, len(values)) for name, values in inputs.items()],
        raw_input_contents=[join_bytes(values) for values in inputs.values()],
        **fields,
    )


def typed_request(model: str, inputs: Mapping[str, Sequence[bytes]], **fields: Any) -> Any:
    """Builds a request whose inputs are typed BYTES, as curl-like clients do."""
    headers = [
        {**bytes_header(name, len(values)), "contents": {"bytes_contents": values}}
        for name, values in inputs.items()
    ]
    return messages.ModelInferRequest(model_name=model, inputs=headers, **fields)


def texts(*values: str, **fields: Any) -> Any:
    """Builds a raw request to embed texts."""
    return raw_request("text", {"text": [value.encode() for value in values]}, **fields)


def bytes_header(name: str, *shape: int) -> dict[str, Any]:
    """Returns the header of a BYTES input."""
    return {"name": name, "datatype": "BYTES", "shape": shape}


def parameters(**values: bool | int | str) -> dict[str, dict[str, Any]]:
    """Returns parameters, of the types that tritonclient gives them."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param"}
    return {name: {kinds[type(value)]: value} for name, value in values.items()}


def output(response: Any, name: str) -> Any:
    """Returns an output as an array, or as lists of bytes."""
    names = [tensor.name for tensor in response.outputs]
    tensor = response.outputs[names.index(name)]
    if not response.raw_output_contents:
        contents = tensor.contents
        flat: Iterable[Any] = contents.fp32_contents or contents.int_contents or contents.bytes_contents
        return np.array(flat, dtype=_NUMPY.get(tensor.datatype, object)).reshape(tensor.shape)
    raw = response.raw_output_contents[names.index(name)]
    if tensor.datatype == "BYTES":
        rows, columns = tensor.shape
        elements = split_bytes(raw, rows * columns, name)
        return [elements[row * columns : (row + 1) * columns] for row in range(rows)]
    return np.frombuffer(raw, _NUMPY[tensor.datatype]).reshape(tensor.shape)
