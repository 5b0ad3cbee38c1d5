"""Errors name the invalid field, and several violations are merged into one error."""

from __future__ import annotations

import pytest
from alignserve_server.errors import (
    FieldViolation,
    ImageTooLarge,
    ImageUnreadable,
    InvalidArgument,
    QueueFull,
    ServingError,
    TextEmpty,
    TextTooLong,
    all_valid,
)

PATH = "images[{}].content".format


def test_an_error_has_everything_for_its_status() -> None:
    """The status is built from its message, delay and metadata."""
    error = QueueFull("queue is full", retry_delay_seconds=0.5, metadata={"limit": "8"})

    assert str(error) == error.message == "queue is full"
    assert error.retry_delay_seconds == 0.5
    assert error.metadata == {"limit": "8"}


def test_errors_do_not_share_metadata() -> None:
    """An entry added to one error does not appear in another."""
    ServingError("one").metadata["error_id"] = "1"

    assert ServingError("other").metadata == {}


def test_an_error_at_a_field_names_it() -> None:
    """It is in the message for people, and in the violation for programs."""
    error = TextEmpty.at("texts[3]", "text is blank")

    assert error.message == "texts[3]: text is blank"
    assert error.violations == (FieldViolation("texts[3]", "text is blank", "TEXT_EMPTY"),)


def test_an_error_that_gets_a_field_keeps_its_type() -> None:
    """The field is added where the position is known."""
    error = ImageTooLarge("image is too large").under("images[0].content")

    assert type(error) is ImageTooLarge
    assert error.message == "images[0].content: image is too large"
    assert error.violations == (FieldViolation("images[0].content", "image is too large", "IMAGE_TOO_LARGE"),)


@pytest.mark.parametrize("answers", [[], ["a"], ["a", "b", "c"]], ids=["none", "one", "three"])
def test_valid_results_are_returned(answers: list[str]) -> None:
    """Without errors, the results are returned in order."""
    assert all_valid(answers, PATH) == answers


def test_one_error_is_raised_at_its_position() -> None:
    """The message is only about that result."""
    with pytest.raises(ImageUnreadable) as raised:
        all_valid([b"fine", ImageUnreadable("broken"), b"fine"], PATH)

    assert raised.value.message == "images[1].content: broken"
    assert [violation.field for violation in raised.value.violations] == ["images[1].content"]


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([TextEmpty("blank"), TextTooLong("long")], TextEmpty),
        ([TextTooLong("long"), TextEmpty("blank")], TextTooLong),
    ],
)
def test_several_errors_have_the_type_of_the_first(
    errors: list[InvalidArgument], kind: type[InvalidArgument]
) -> None:
    """A call has only one reason; each violation keeps its own."""
    with pytest.raises(InvalidArgument) as raised:
        all_valid(errors, "texts[{}]".format)

    assert type(raised.value) is kind
    assert [violation.reason for violation in raised.value.violations] == [each.reason for each in errors]


def test_several_errors_are_all_reported() -> None:
    """The message describes the first one and counts the others; each has a violation with its position."""
    answers = ["fine", TextEmpty("blank"), "fine", TextTooLong("long"), TextEmpty("blank")]

    with pytest.raises(TextEmpty) as raised:
        all_valid(answers, "texts[{}]".format)

    assert raised.value.message == "texts[1]: blank (and 2 more)"
    assert raised.value.violations == (
        FieldViolation("texts[1]", "blank", "TEXT_EMPTY"),
        FieldViolation("texts[3]", "long", "TEXT_TOO_LONG"),
        FieldViolation("texts[4]", "blank", "TEXT_EMPTY"),
    )
