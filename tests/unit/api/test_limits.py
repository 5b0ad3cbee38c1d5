"""Requests are checked before any work is done for them, including labels combined with templates."""

from __future__ import annotations

import pytest
from alignserve_server.api.limits import (
    LabelQuery,
    RequestLimits,
    check_images,
    check_texts,
    checked_labels,
)
from alignserve_server.batching.call import FieldPaths
from alignserve_server.errors import (
    BatchTooLarge,
    InvalidArgument,
    LabelsInvalid,
    RequestEmpty,
    TemplateInvalid,
    TextTooLong,
)

LIMITS = RequestLimits(
    max_client_batch_size=2,
    max_labels=3,
    max_prompt_templates=2,
    max_image_bytes=1000,
    max_image_pixels=1000,
    max_text_bytes=20,
    max_request_bytes=200,
    max_response_bytes=200,
    max_stream_in_flight=32,
    image_formats=("JPEG", "PNG"),
)
PATHS = FieldPaths(
    images="images",
    image="input[{}].image".format,
    texts="input",
    text="input[{}]".format,
    labels="candidate_labels",
    label="candidate_labels[{}]".format,
    prompt_templates="hypothesis_templates",
    prompt_template="hypothesis_templates[{}]".format,
    top_k="top",
)


def fields_of(error: InvalidArgument) -> list[str]:
    return [violation.field for violation in error.violations]


def test_refuses_a_label_with_too_many_bytes() -> None:
    """The limit is on bytes, not characters."""
    assert checked_labels(LabelQuery(["é" * 10]), LIMITS).labels == ["é" * 10]

    with pytest.raises(TextTooLong, match="label has 22 bytes, limit 20; shorten it") as refused:
        checked_labels(LabelQuery(["cat", "é" * 11]), LIMITS)

    assert fields_of(refused.value) == ["labels[1]"]


def test_refuses_a_template_that_leaves_no_room_for_a_label() -> None:
    """The placeholder does not count."""
    query = LabelQuery(["x"], ["{label}", "t" * 21 + "{label}"])

    with pytest.raises(TextTooLong, match="template has 21 bytes, limit 20; shorten it") as refused:
        checked_labels(query, LIMITS)

    assert fields_of(refused.value) == ["prompt_templates[1]"]


def test_refuses_a_label_that_its_longest_template_makes_too_long() -> None:
    """The size of a prompt is that of the label plus what the template adds."""
    templates = ["{label}", "t" * 10 + "{label}"]
    checked_labels(LabelQuery(["l" * 10], templates), LIMITS)

    with pytest.raises(TextTooLong, match="label in the longest template has 21 bytes") as refused:
        checked_labels(LabelQuery(["l", "l" * 11], templates), LIMITS)

    assert fields_of(refused.value) == ["labels[1]"]


@pytest.mark.parametrize(
    ("query", "kind", "field"),
    [
        (LabelQuery([]), LabelsInvalid, "candidate_labels"),
        (LabelQuery(["a", "b", "c", "d"]), LabelsInvalid, "candidate_labels"),
        (LabelQuery(["a", " "]), LabelsInvalid, "candidate_labels[1]"),
        (LabelQuery(["a"], ["{label}"] * 3), TemplateInvalid, "hypothesis_templates"),
        (LabelQuery(["a"], ["{label}", "none"]), TemplateInvalid, "hypothesis_templates[1]"),
        (LabelQuery(["a"], top_k=-1), InvalidArgument, "top"),
    ],
)
def test_errors_of_labels_name_the_fields_of_the_door(
    query: LabelQuery, kind: type[InvalidArgument], field: str
) -> None:
    """Callers know only the names of their own door."""
    with pytest.raises(kind) as refused:
        checked_labels(query, LIMITS, PATHS)

    assert fields_of(refused.value) == [field]
    assert refused.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("contents", "kind", "field"),
    [
        ([], RequestEmpty, "images"),
        ([b"a"] * 3, BatchTooLarge, "images"),
        ([b"a", b""], RequestEmpty, "input[1].image"),
    ],
)
def test_errors_of_images_name_the_fields_of_the_door(
    contents: list[bytes], kind: type[InvalidArgument], field: str
) -> None:
    """The same as for labels."""
    with pytest.raises(kind) as refused:
        check_images(contents, LIMITS, PATHS)

    assert fields_of(refused.value) == [field]


def test_errors_of_texts_name_the_fields_of_the_door() -> None:
    """The items are called texts, whatever the field's name."""
    with pytest.raises(BatchTooLarge, match=r"^input: 3 texts, limit 2; send fewer per request$"):
        check_texts(["a"] * 3, LIMITS, PATHS)


@pytest.mark.parametrize(
    ("query", "is_short"),
    [
        (LabelQuery(["a"] * 64), True),
        (LabelQuery(["a"] * 60, ["{label}"] * 5), False),
        (LabelQuery(["a" * (16 << 10)]), True),
        (LabelQuery(["a" * (16 << 10)], ["{label}"]), False),
    ],
)
def test_only_few_and_short_labels_are_checked_on_the_event_loop(query: LabelQuery, is_short: bool) -> None:
    """Labels and templates are added up."""
    assert query.is_short is is_short
