"""Responses written from arrays are the messages that protobuf would write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.api import ScoredLabel, TokenizedText, pack_signs, quantize_int8
from alignserve_server.rpc import response_bytes

EMBEDDINGS = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)
INTEGERS, SCALES = quantize_int8(EMBEDDINGS)

EXPECTED: dict[Any, list[pb.Embedding]] = {
    pb.EMBEDDING_FORMAT_UNSPECIFIED: [pb.Embedding(values=row) for row in EMBEDDINGS.tolist()],
    pb.EMBEDDING_FORMAT_FLOAT_LIST: [pb.Embedding(values=row) for row in EMBEDDINGS.tolist()],
    pb.EMBEDDING_FORMAT_PACKED_FLOAT32: [pb.Embedding(packed_float32=row.tobytes()) for row in EMBEDDINGS],
    pb.EMBEDDING_FORMAT_PACKED_FLOAT16: [
        pb.Embedding(packed_float16=row.astype("<f2").tobytes()) for row in EMBEDDINGS
    ],
    pb.EMBEDDING_FORMAT_PACKED_INT8: [
        pb.Embedding(packed_int8=row.tobytes(), int8_scale=scale)
        for row, scale in zip(INTEGERS, SCALES, strict=True)
    ],
    pb.EMBEDDING_FORMAT_PACKED_BINARY: [
        pb.Embedding(packed_binary=row.tobytes()) for row in pack_signs(EMBEDDINGS)
    ],
}


@pytest.mark.parametrize("embedding_format", EXPECTED)
@pytest.mark.parametrize("count", [1, 3])
def test_embeddings_are_written_as_protobuf_does(embedding_format: Any, count: int) -> None:
    """In each format, byte for byte."""
    encode = response_bytes.embedding_encoder(pb.EmbeddingOptions(format=embedding_format))

    written = encode(EMBEDDINGS[:count])

    expected = pb.EmbedTextResponse(embeddings=EXPECTED[embedding_format][:count])
    assert written == expected.SerializeToString()


def test_every_format_is_written() -> None:
    """A format that the protos define has an encoder."""
    assert list(EXPECTED) == pb.EmbeddingFormat.values()


def test_rows_need_not_be_contiguous() -> None:
    """A part of a larger array can be written as it is."""
    encode = response_bytes.embedding_encoder(pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_FLOAT32))

    assert encode(EMBEDDINGS[:, ::2]) == encode(EMBEDDINGS[:, ::2].copy())


def test_unknown_tokens_are_counted_per_text() -> None:
    """Each text's tokenization contains its own count."""
    texts = [TokenizedText((2, 1, 1, 3), unknown_token_count=2), TokenizedText((2, 9, 3), truncated=True)]

    told = pb.EmbedTextResponse.FromString(response_bytes.tokenizations(texts)).tokenizations

    assert [(one.token_count, one.truncated, one.unknown_token_count) for one in told] == [
        (4, False, 2),
        (3, True, 0),
    ]


@pytest.mark.parametrize("count", [1, 8, 9, 1000])
def test_classifications_are_written_as_protobuf_does(count: int) -> None:
    """However many labels an image has, byte for byte, best label first."""
    labels = [f"étiquette {i}" for i in range(count)]
    scored = [ScoredLabel(i, 1 / (count - i), -i / 8, -i / 2) for i in reversed(range(count))]

    written = response_bytes.classification_result(labels, scored)

    result = pb.ClassificationResult(
        classifications=[pb.Classification(label=labels[each[0]], **each._asdict()) for each in scored]
    )
    assert written == pb.ClassifyResponse(results=[result]).SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000])
def test_a_field_has_its_size_in_front(size: int) -> None:
    """The size takes one to three bytes."""
    content = "a" * size

    written = response_bytes.field(pb.StreamInferResponse.CORRELATION_ID_FIELD_NUMBER, content.encode())

    assert pb.StreamInferResponse.FromString(written).correlation_id == content
