"""Requests are checked for what their parts make together, before any work is done for them."""

from __future__ import annotations

import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.errors import InvalidArgument, LabelsInvalid, TextTooLong
from alignserve_server.rpc import convert

LIMITS = convert.RequestLimits(
    max_client_batch_size=64,
    max_labels=1000,
    max_prompt_templates=100,
    max_image_bytes=1000,
    max_image_pixels=1000,
    max_text_bytes=20,
    max_request_bytes=200,
    max_stream_in_flight=32,
)


def classify_request(images: int, *labels: str, **fields: object) -> pb.ClassifyRequest:
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


@pytest.mark.parametrize(
    ("images", "labels", "top_k"),
    [(10, ["l" * 20], 0), (5, ["l" * 20, "m" * 20], 0), (10, ["l" * 20] * 9, 1), (2, ["a"] * 100, 100)],
)
def test_accepts_a_response_as_large_as_a_request(images, labels, top_k):
    """Exactly as many bytes of labels as the limit pass, and those that top_k leaves out do not count."""
    convert.check_classification(classify_request(images, *labels, top_k=top_k), LIMITS)


@pytest.mark.parametrize(
    ("images", "labels", "top_k"),
    [
        (11, ["l" * 20], 0),
        (10, ["l" * 20, "m"], 0),
        (10, ["a"] * 9 + ["l" * 20, "b"], 2),
        (9, ["lll"] * 8, 9),
    ],
)
def test_refuses_a_response_larger_than_a_request(images, labels, top_k):
    """Each image repeats the labels; the longest that top_k allows count."""
    with pytest.raises(LabelsInvalid, match=r"set top_k, shorten labels or send fewer images$") as refused:
        convert.check_classification(classify_request(images, *labels, top_k=top_k), LIMITS)

    assert fields_of(refused.value) == ["labels"]
