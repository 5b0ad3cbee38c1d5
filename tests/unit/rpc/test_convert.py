"""Requests are checked for what their parts make together, before any work is done for them."""

from __future__ import annotations

from typing import Any

import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.errors import InvalidArgument, TextTooLong
from alignserve_server.model.encoder import TokenizedText
from alignserve_server.rpc import convert

LIMITS = convert.RequestLimits(
    max_client_batch_size=64,
    max_labels=1000,
    max_prompt_templates=100,
    max_image_bytes=1000,
    max_image_pixels=1000,
    max_text_bytes=20,
    max_request_bytes=200,
    max_response_bytes=200,
    max_stream_in_flight=32,
    image_formats=("JPEG", "PNG"),
)


def classify_request(images: int, *labels: str, **fields: Any) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=[pb.Image(content=b"x")] * images, labels=labels, **fields)


def fields_of(error: InvalidArgument) -> list[str]:
    return [violation.field for violation in error.violations]


def test_refuses_a_label_with_too_many_bytes():
    """Bytes count, not characters."""
    assert convert.labels(["é" * 10], LIMITS) == ["é" * 10]

    with pytest.raises(TextTooLong, match="label has 22 bytes, limit 20; shorten it") as refused:
        convert.labels(["cat", "é" * 11], LIMITS)

    assert fields_of(refused.value) == ["labels[1]"]


def test_refuses_a_template_that_leaves_no_room_for_a_label():
    """Its placeholder does not count."""
    assert convert.prompt_templates(["t" * 20 + "{label}"], LIMITS)

    with pytest.raises(TextTooLong, match="template has 21 bytes, limit 20; shorten it") as refused:
        convert.prompt_templates(["{label}", "t" * 21 + "{label}"], LIMITS)

    assert fields_of(refused.value) == ["prompt_templates[1]"]


def test_refuses_a_label_that_its_longest_template_makes_too_long():
    """A prompt is as long as the label and what the template adds."""
    templates = ["{label}", "t" * 10 + "{label}"]
    convert.check_classification(classify_request(1, "l" * 10, prompt_templates=templates), LIMITS)

    with pytest.raises(TextTooLong, match="label in the longest template has 21 bytes") as refused:
        convert.check_classification(classify_request(1, "l", "l" * 11, prompt_templates=templates), LIMITS)

    assert fields_of(refused.value) == ["labels[1]"]


def test_tells_how_many_tokens_are_unknown():
    """The count travels with each text's own tokenization."""
    texts = [TokenizedText((2, 1, 1, 3), unknown_token_count=2), TokenizedText((2, 9, 3), truncated=True)]

    told = convert.tokenizations(texts)

    assert [(one.token_count, one.truncated, one.unknown_token_count) for one in told] == [
        (4, False, 2),
        (3, True, 0),
    ]
