"""The fields of a message are counted before it is parsed."""

from __future__ import annotations

from typing import Any

import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.kserve.messages import ModelInferRequest
from alignserve_server.rpc.field_count import has_more_fields
from google.protobuf.message import Message

IMAGES = pb.EmbedImageRequest(images=[pb.Image(content=b"a" * 300)] * 5, include_stats=True)
UNKNOWN = b"\x78\x01" + b"\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x7a\x02ab" + b"\x7b\x78\x01\x7c"


def count(message: bytes, of: Any) -> int:
    """Finds the number of fields by raising the limit until it is not exceeded."""
    return next(limit for limit in range(1000) if not has_more_fields(message, of.DESCRIPTOR, limit))


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (pb.EmbedTextRequest(), 0),
        (pb.EmbedTextRequest(texts=["a", "", "é" * 200], truncate=True), 4),
        (IMAGES, 5 * 2 + 1),
        (pb.StreamInferRequest(correlation_id="a", embed_image=IMAGES), 2 + 5 * 2 + 1),
    ],
    ids=["none", "texts", "images", "item of a stream"],
)
def test_fields_are_counted_at_every_depth(message: Message, fields: int) -> None:
    """Fields of nested messages count too."""
    assert count(message.SerializeToString(), message) == fields


def test_unknown_fields_count() -> None:
    """This holds for every wire type. The start and end of a group count as one each."""
    assert pb.EmbedTextRequest.FromString(UNKNOWN)
    assert count(UNKNOWN, pb.EmbedTextRequest()) == 7


@pytest.mark.parametrize(
    "end",
    [b"\x0a", b"\x0a\x80", b"\x0a\x05a", b"\x0e", b"\xff" * 100_000, b"\x0a" + b"\xff" * 11],
    ids=["no length", "half a length", "too short", "no such kind", "endless", "long length"],
)
def test_malformed_messages_are_left_to_the_parser(end: bytes) -> None:
    """Only the fields before the error count."""
    assert not has_more_fields(b"\x0a\x01a" * 3 + end, pb.EmbedTextRequest.DESCRIPTOR, 4)
    assert has_more_fields(b"\x0a\x01a" * 5 + end, pb.EmbedTextRequest.DESCRIPTOR, 4)


def test_packed_numbers_count_by_their_bytes() -> None:
    """Sixteen of them are as dear as a field; floats, which are copied as they are, do not count."""
    tensor = {"shape": [1] * 10, "contents": {"fp32_contents": [1.0] * 160, "uint64_contents": [1] * 160}}
    last = ModelInferRequest(inputs=[tensor])

    assert count(last.SerializeToString(), last) == 1 + 1 + 1 + 1 + (1 + 160 // 16)
