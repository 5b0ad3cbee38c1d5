"""Messages to and from JSON: the same as protobuf's own, which is the reference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.errors import RequestMalformed
from alignserve_server.http.json_to_message import fill_message
from alignserve_server.http.message_to_json import json_parts
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

REQUESTS: list[Message] = [
    pb.GetModelInfoRequest(),
    pb.EmbedImageRequest(
        images=[
            pb.Image(content=bytes(range(256))),
            pb.Image(pixels=pb.Pixels(height=1, width=2, data=b"\0\1\2\3\4\5")),
            pb.Image(),
        ],
        embedding_options=pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_INT8),
    ),
    pb.EmbedTextRequest(texts=["", "ä\n\"'\\", "日本語", "😀", "\0"], truncate=True),
    pb.ClassifyRequest(labels=["a"], prompt_templates=["{label}"], top_k=2**31 - 1, include_stats=True),
    pb.EmbedQueryRequest(queries=[pb.ComposedQuery(terms=[pb.QueryTerm(text="a", weight=-0.5)])]),
    pb.StreamInferRequest(correlation_id="1", compare=pb.CompareRequest(pairs=[pb.ImageTextPair(text="a")])),
    pb.StreamInferRequest(stream_options=pb.StreamOptions(delivery_order=pb.DELIVERY_ORDER_AS_REQUESTED)),
]

_error = status_pb2.Status(code=3, message="no")
_error.details.add().Pack(error_details_pb2.ErrorInfo(reason="TEXT_EMPTY", domain="alignserve.v1"))
_stats = pb.InferenceStats(batch_size=3)
_stats.queue_duration.FromMilliseconds(1500)
_numbers = np.random.default_rng(0).standard_normal(100).astype(np.float32)

RESPONSES: list[Message] = [
    pb.EmbedTextResponse(),
    pb.EmbedTextResponse(
        embeddings=[pb.Embedding(values=_numbers.tolist()), pb.Embedding(packed_float32=_numbers.tobytes())],
        tokenizations=[pb.Tokenization(token_count=3)],
        stats=_stats,
    ),
    pb.EmbedImageResponse(embeddings=[pb.Embedding(packed_int8=b"\1\2", int8_scale=0.1), pb.Embedding()]),
    pb.ClassifyResponse(
        results=[
            pb.ClassificationResult(
                classifications=[pb.Classification(label='ä"', label_index=1, score=0.1, logit=-1e-20)]
            ),
            pb.ClassificationResult(),
        ]
    ),
    pb.GetModelInfoResponse(model_id="a", max_image_bytes=2**40, temperature=0.0182, image_formats=["JPEG"]),
    pb.StreamInferResponse(correlation_id="1", error=_error),
    pb.StreamInferResponse(correlation_id="1", embed_text=pb.EmbedTextResponse(stats=_stats)),
]


def written(message: Message) -> Any:
    """Returns a message as JSON."""
    return json.loads(b"".join(json_parts(message)))


@pytest.mark.parametrize("preserving", [True, False])
@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: message.DESCRIPTOR.name)
def test_a_request_is_read_as_protobuf_writes_it(message: Message, preserving: bool) -> None:
    """With names of the proto or of JSON."""
    value = json_format.MessageToDict(message, preserving_proto_field_name=preserving)
    read = type(message)()

    fill_message(read, value)

    assert read == message


@pytest.mark.parametrize("message", RESPONSES, ids=lambda message: message.DESCRIPTOR.name)
def test_protobuf_reads_what_is_written(message: Message) -> None:
    """Every number is exact."""
    read = type(message)()

    json_format.ParseDict(written(message), read)

    assert read == message


@pytest.mark.parametrize("message", RESPONSES, ids=lambda message: message.DESCRIPTOR.name)
def test_what_protobuf_writes_is_written(message: Message) -> None:
    """Values of 0 may come in addition."""

    def covers(ours: Any, theirs: Any) -> bool:
        if isinstance(theirs, dict):
            return all(name in ours and covers(ours[name], value) for name, value in theirs.items())
        if isinstance(theirs, list):
            return len(ours) == len(theirs) and all(map(covers, ours, theirs))
        if isinstance(theirs, float):
            return bool(np.float32(ours) == np.float32(theirs))
        return bool(ours == theirs)

    assert covers(written(message), json_format.MessageToDict(message))


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        (pb.EmbedImageRequest, {"images": [{"content": "%%%"}]}, "images[0].content"),
        (pb.EmbedImageRequest, {"images": [{"content": "AA=A"}]}, "images[0].content"),
        (pb.EmbedImageRequest, {"images": [{"content": "ÄÄÄÄ"}]}, "images[0].content"),
        (pb.EmbedImageRequest, {"images": [{"content": "A"}]}, "images[0].content"),
        (pb.EmbedImageRequest, {"images": [{"content": ["AAAA"]}]}, "images[0].content"),
        (pb.EmbedImageRequest, {"images": [{"content": "AAAA", "pixels": {}}]}, "images[0].pixels"),
        (pb.EmbedImageRequest, {"images": [[]]}, "images[0]"),
        (pb.ClassifyRequest, {"top_k": 2**31}, "top_k"),
        (pb.ClassifyRequest, {"topK": "1.5"}, "top_k"),
        (pb.ClassifyRequest, {"topK": 1.5}, "top_k"),
        (pb.ClassifyRequest, {"topK": True}, "top_k"),
        (pb.ClassifyRequest, {"labels": {"0": "cat"}}, "labels"),
        (pb.EmbedQueryRequest, {"queries": [{"terms": [{"weight": "1"}]}]}, "queries[0].terms[0].weight"),
        (pb.EmbedTextRequest, {"embedding_options": {"format": 1.5}}, "embedding_options.format"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(kind: Any, value: Any, field: str) -> None:
    """The caller sees what to change."""
    with pytest.raises(RequestMalformed) as caught:
        fill_message(kind(), value)

    assert [violation.field for violation in caught.value.violations] == [field]
    assert len(str(caught.value)) < 400


def test_a_message_is_written_in_small_parts() -> None:
    """The event loop gets its turn between them."""
    results = [
        pb.ClassificationResult(classifications=[pb.Classification(label="a" * 100)] * 1000)
        for _ in range(10)
    ]
    parts = list(json_parts(pb.ClassifyResponse(results=results)))

    assert max(map(len, parts)) < 1000
    assert len(json.loads(b"".join(parts))["results"]) == 10
