"""Results and items of the client against the messages that they mirror.

A field or message that is added to the proto fails here until the client has it, or says below why not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import alignserve
import pytest
from alignserve import _requests, _responses
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb
from google.protobuf import duration_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2

# By message: the dataclass, and fields with different names.
MIRRORS: dict[Any, tuple[type[Any], dict[str, str]]] = {
    pb.GetModelInfoResponse: (alignserve.ModelInfo, {}),
    pb.Classification: (alignserve.Classification, {}),
    pb.Tokenization: (alignserve.Tokenization, {}),
    pb.InferenceStats: (
        alignserve.InferenceStats,
        {
            "preprocess_duration": "preprocess_seconds",
            "queue_duration": "queue_seconds",
            "compute_duration": "compute_seconds",
            "total_duration": "total_seconds",
        },
    ),
    pb.Comparison: (alignserve.Comparison, {}),
    pb.EmbedImageResponse: (alignserve.ImageEmbeddings, {}),
    pb.EmbedTextResponse: (alignserve.TextEmbeddings, {}),
    pb.ClassifyResponse: (alignserve.ImageClassifications, {"results": "classifications"}),
    pb.CompareResponse: (alignserve.Comparisons, {}),
    pb.EmbedQueryResponse: (alignserve.QueryEmbeddings, {}),
    pb.EmbedImageRequest: (alignserve.ImageItem, {"images": "image", "embedding_options": "normalize"}),
    pb.EmbedTextRequest: (alignserve.TextItem, {"texts": "text", "embedding_options": "normalize"}),
    pb.ClassifyRequest: (alignserve.ClassifyItem, {"images": "image"}),
    pb.CompareRequest: (alignserve.CompareItem, {"pairs": "image"}),
    pb.ImageTextPair: (alignserve.CompareItem, {}),
    pb.EmbedQueryRequest: (alignserve.QueryItem, {"queries": "query", "embedding_options": "normalize"}),
    pb.QueryTerm: (alignserve.QueryTerm, {}),
    pb.EmbeddingOptions: (alignserve.ImageItem, {"skip_normalization": "normalize", "format": "dtype"}),
    error_details_pb2.BadRequest.FieldViolation: (alignserve.FieldViolation, {}),
}

# Fields that a dataclass lacks.
ABSENT_FIELDS = {
    "EmbedImageRequest.include_stats": "always set in calls, and of no use in a stream",
    "EmbedTextRequest.include_stats": "likewise",
    "ClassifyRequest.include_stats": "likewise",
    "CompareRequest.include_stats": "likewise",
    "EmbedQueryRequest.include_stats": "likewise",
    "FieldViolation.localized_message": "the server writes English only",
}

# Messages without a dataclass.
ABSENT_MESSAGES = {
    "GetModelInfoRequest": "empty",
    "Image": "an image is what callers have: a path, bytes, pixels",
    "Pixels": "a numpy array",
    "Embedding": "a numpy array",
    "ComposedQuery": "a list of terms",
    "ClassificationResult": "a list of Classification",
    "StreamInferRequest": "an item, with an id that the client chooses",
    "StreamInferResponse": "a StreamResult, which has one value for all kinds",
    "StreamOptions": "arguments of Client.stream",
}


def name_of(message: Any) -> str:
    return str(message.DESCRIPTOR.name)


@pytest.mark.parametrize("message", MIRRORS, ids=name_of)
def test_every_field_of_a_message_is_in_its_mirror(message: Any) -> None:
    """Every field of the proto has a counterpart in the client."""
    mirror, names = MIRRORS[message]
    fields = {field.name for field in dataclasses.fields(mirror)}

    missing = [
        field.name
        for field in message.DESCRIPTOR.fields
        if names.get(field.name, field.name) not in fields
        and f"{name_of(message)}.{field.name}" not in ABSENT_FIELDS
    ]

    assert missing == []


def test_every_message_has_a_mirror() -> None:
    """Every message has a counterpart, or a reason here for having none."""
    ours = {name_of(message) for message in MIRRORS}

    assert set(pb.DESCRIPTOR.message_types_by_name) - ours == set(ABSENT_MESSAGES)


def test_the_exceptions_are_current() -> None:
    """No exception is listed for a field that has a counterpart."""
    for name in ABSENT_FIELDS:
        message, field = name.split(".")
        (found,) = [each for each in MIRRORS if name_of(each) == message]
        mirror, _ = MIRRORS[found]
        assert field in found.DESCRIPTOR.fields_by_name
        assert field not in {each.name for each in dataclasses.fields(mirror)}


READERS: dict[Any, Callable[[Any], Any]] = {
    pb.GetModelInfoResponse: _responses.model_info,
    pb.Classification: lambda message: _responses.read_classifications(
        pb.ClassifyResponse(results=[pb.ClassificationResult(classifications=[message])])
    ).values[0][0],  # type: ignore[index]  # a list here
    pb.Comparison: lambda message: next(
        iter(_responses.read_comparisons(pb.CompareResponse(comparisons=[message])).values)
    ),
    pb.Tokenization: lambda message: _responses.read_texts(
        pb.EmbedTextResponse(embeddings=[pb.Embedding(packed_float32=bytes(8))], tokenizations=[message])
    ).tokenizations[0],
    pb.InferenceStats: lambda message: (
        _responses.read_images(
            pb.EmbedImageResponse(embeddings=[pb.Embedding(packed_float32=bytes(8))], stats=message)
        ).stats
    ),
}


@pytest.mark.parametrize("message", READERS, ids=name_of)
def test_every_field_of_a_response_reaches_its_mirror(message: Any) -> None:
    """Every field has a distinct value, so that no field is missing or swapped."""
    filled, expected = message(), {}
    names = MIRRORS[message][1]
    for number, field in enumerate(message.DESCRIPTOR.fields, start=1):
        expected[names.get(field.name, field.name)] = fill(filled, field, number)

    mirror = READERS[message](filled)

    assert {field.name: getattr(mirror, field.name) for field in dataclasses.fields(mirror)} == expected


def fill(message: Any, field: FieldDescriptor, number: int) -> Any:
    """Sets a field, and returns the client's value for it."""
    if field.message_type is not None:
        assert field.message_type is duration_pb2.Duration.DESCRIPTOR
        getattr(message, field.name).FromSeconds(number)
        return float(number)
    kinds = {FieldDescriptor.CPPTYPE_STRING: str, FieldDescriptor.CPPTYPE_FLOAT: float}
    kinds[FieldDescriptor.CPPTYPE_BOOL] = bool
    value = kinds.get(field.cpp_type, int)(number)
    if field.is_repeated:
        getattr(message, field.name).append(value)
        return (value,)
    setattr(message, field.name, value)
    return value


ITEMS: dict[Any, Any] = {
    pb.EmbedImageRequest: alignserve.ImageItem(b"x", normalize=False, dtype="float16"),
    pb.EmbedTextRequest: alignserve.TextItem("x", truncate=True, normalize=False, dtype="float16"),
    pb.ClassifyRequest: alignserve.ClassifyItem(b"x", ["a"], ["{label}"], 1),
    pb.CompareRequest: alignserve.CompareItem(b"x", "a", truncate=True),
    pb.EmbedQueryRequest: alignserve.QueryItem(["a"], truncate=True, normalize=False, dtype="int8"),
}


@pytest.mark.parametrize("message", ITEMS, ids=name_of)
def test_every_field_of_a_request_is_sent(message: Any) -> None:
    """Every option of an item is in the message."""
    streamed = _requests.prepared(ITEMS[message], 1 << 20)
    assert isinstance(streamed, pb.StreamInferRequest)
    kind = streamed.WhichOneof("request")
    assert kind is not None
    sent = {field.name for field, _ in getattr(streamed, kind).ListFields()}

    absent = {field for field in message.DESCRIPTOR.fields_by_name if field not in sent}

    assert {f"{name_of(message)}.{field}" for field in absent} <= set(ABSENT_FIELDS)


def test_the_fake_server_tells_every_limit() -> None:
    """The fake server has a value in every field that a real server sets."""
    with FakeServer() as server, alignserve.Client(server.target) as client:
        info = client.model_info()

    empty = {name for name, value in dataclasses.asdict(info).items() if not value}
    assert empty == {"model_revision"}  # as for a local folder
