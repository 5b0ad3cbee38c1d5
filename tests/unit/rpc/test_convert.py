"""Messages and results are converted unchanged."""

from __future__ import annotations

from dataclasses import fields

import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.api import (
    ModelInfo,
    PixelArray,
    QueryTerm,
    RequestLimits,
    ServiceInfo,
)
from alignserve_server.rpc import convert
from google.protobuf.message import Message


def test_each_field_of_the_model_info_has_a_value_of_the_same_name() -> None:
    """This way every limit is published."""
    published = {field.name for field in pb.GetModelInfoResponse.DESCRIPTOR.fields}
    named = [field.name for kind in (ModelInfo, RequestLimits) for field in fields(kind)]

    assert sorted([*named, "server_version"]) == sorted(published)


def test_the_model_info_carries_all_values() -> None:
    """The message contains model, limits and version."""
    model = ModelInfo("align", "main", "abc", "fake", "float32", "cpu", 640, 0.5, 64, 1.0)
    limits = RequestLimits(1, 2, 3, 4, 5, 6, 7, 8, 9, ("JPEG",))

    told = convert.model_info(ServiceInfo(model, limits, "1.2.3"))

    assert (told.model_id, told.temperature, told.server_version) == ("align", 0.5, "1.2.3")
    assert (told.max_client_batch_size, told.max_stream_in_flight) == (1, 9)
    assert list(told.image_formats) == ["JPEG"]


def test_images_are_files_or_pixels() -> None:
    """An image without a source is an empty file, which is refused like one."""
    images = [
        pb.Image(content=b"file"),
        pb.Image(pixels=pb.Pixels(height=1, width=2, data=b"rgbrgb")),
        pb.Image(pixels=pb.Pixels()),
        pb.Image(),
    ]

    assert convert.image_inputs(images) == [
        b"file", PixelArray(1, 2, b"rgbrgb"), PixelArray(0, 0, b""), b"",
    ]  # fmt: skip


def test_a_term_weighs_1_unless_it_says_otherwise() -> None:
    """A weight of 0 that is set is not a missing one."""
    terms = [
        pb.QueryTerm(text="a"),
        pb.QueryTerm(text="", weight=0.0),
        pb.QueryTerm(image=pb.Image(content=b"b"), weight=-0.5),
        pb.QueryTerm(weight=2.0),
    ]

    assert convert.query_terms([pb.ComposedQuery(terms=terms), pb.ComposedQuery()]) == [
        [QueryTerm("a", 1.0), QueryTerm("", 0.0), QueryTerm(b"b", -0.5), QueryTerm(None, 2.0)],
        [],
    ]


@pytest.mark.parametrize(
    ("request_message", "count"),
    [
        (pb.EmbedImageRequest(images=[pb.Image()] * 3), 3),
        (pb.EmbedTextRequest(texts=["a"] * 2), 2),
        (pb.ClassifyRequest(images=[pb.Image()], labels=["a", "b"]), 1),
        (pb.CompareRequest(pairs=[pb.ImageTextPair()] * 4), 4),
        (pb.EmbedQueryRequest(queries=[pb.ComposedQuery(terms=[pb.QueryTerm()] * 3)]), 1),
        (pb.GetModelInfoRequest(), 0),
    ],
)
def test_the_items_of_a_request_are_its_results(request_message: Message, count: int) -> None:
    """Labels and terms do not count."""
    assert convert.item_count(request_message) == count
