"""Images within JSON: which strings are images, and how they are decoded."""

from __future__ import annotations

import base64
import random

import pytest
from alignserve_server.errors import ImageUnreadable, InvalidArgument
from alignserve_server.http.image_source import decode_image, is_data_uri

CONTENT = random.Random(0).randbytes(700_001)  # several slices, both alphabets, padding
STANDARD = base64.b64encode(CONTENT).decode()
IN_URLS = base64.urlsafe_b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "source",
    [
        STANDARD,
        IN_URLS,
        STANDARD.rstrip("="),
        base64.encodebytes(CONTENT).decode(),
        f"data:image/png;base64,{STANDARD}",
        f"DATA:IMAGE/PNG;BASE64,{STANDARD}",
        f"data:image/png;charset=utf-8;name=cat.png;base64,\r\n{IN_URLS}",
        f"data:image/png; base64,{STANDARD}",
        f"\ndata:image/\npng;base64,{STANDARD}",
        f"data:;base64,{STANDARD}",
        f"data:application/octet-stream;base64,{STANDARD}",
        f"data:image/png;base64,{STANDARD.replace('+', '%2B').replace('=', '%3D')}",
    ],
    ids=lambda source: repr(source[:40]),
)
def test_base64_is_read_in_any_form(source: str) -> None:
    """Clients differ in alphabet, padding, line breaks, case and parameters."""
    assert decode_image(source, "input") == CONTENT


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("!!!", ImageUnreadable, "not valid base64"),
        ("abcde", ImageUnreadable, "not valid base64"),
        ("ab=cd", ImageUnreadable, "not valid base64"),
        ("añb=", ImageUnreadable, "not valid base64"),
        ("data: a text", ImageUnreadable, "not valid base64"),
        ("data:text/plain;base64,aGk=", ImageUnreadable, "'text/plain'; send an image"),
        ("data:image/svg+xml,%3Csvg", ImageUnreadable, "not in base64"),
        ("https://example.com/cat.png", InvalidArgument, "https URLs are not fetched"),
        (" HTTP://example.com", InvalidArgument, "http URLs are not fetched"),
        ("file:///etc/passwd", InvalidArgument, "file URLs are not fetched"),
    ],
)
def test_anything_else_is_refused_at_its_field(source: str, kind: type, message: str) -> None:
    """The error names the field of the caller."""
    with pytest.raises(InvalidArgument, match=message) as caught:
        decode_image(source, "input[1]")

    assert type(caught.value) is kind
    assert [violation.field for violation in caught.value.violations] == ["input[1]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data:image/png;base64,AAAA", True),
        ("Data:Image/PNG;Base64,AAAA", True),
        (" data:image/jpeg;q=1;base64,AAAA", True),
        (" " * 101 + "data:image/png;base64,AAAA", False),  # to skip megabytes of blanks takes long
        ("data:text/plain,hello", True),
        ("data:;base64,AAAA", True),
        ("data: the new oil, they say", False),
        ("data: text/plain, and more", False),
        ("data:and/or, hello", False),
        ("data:,", False),
        ("data", False),
        ("a data:image/png;base64,AAAA", False),
    ],
)
def test_texts_that_begin_with_data_stay_texts(text: str, expected: bool) -> None:
    """A data URI has a media type or the base64 marker."""
    assert is_data_uri(text) is expected


def test_a_long_text_is_not_searched_for_a_comma() -> None:
    """The head of a data URI is short, so megabytes after `data:` cost nothing."""
    assert not is_data_uri("data:image/png;" + "a" * 5_000_000)
