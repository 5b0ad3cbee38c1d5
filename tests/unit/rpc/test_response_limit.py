"""A response is as large as its caller accepts, and never larger than the server sends."""

from __future__ import annotations

import pytest
from alignserve_server.errors import BatchTooLarge, InvalidArgument, LabelsInvalid
from alignserve_server.rpc.response_limit import ResponseLimit, response_limit

KEY = "alignserve-max-response-bytes"
MIB = 1 << 20


def limit_of(*metadata: tuple[str, str], most: int = 16 * MIB) -> ResponseLimit:
    return response_limit(metadata, most)


@pytest.mark.parametrize(
    ("metadata", "most", "max_bytes", "can_be_raised"),
    [
        ([], 16 * MIB, 4 * MIB, True),
        ([("other", "1")], 16 * MIB, 4 * MIB, True),
        ([], 4 * MIB, 4 * MIB, False),
        ([], 1 * MIB, 1 * MIB, False),
        ([(KEY, "1")], 16 * MIB, 1, True),
        ([(KEY, str(16 * MIB - 1))], 16 * MIB, 16 * MIB - 1, True),
        ([(KEY, str(16 * MIB))], 16 * MIB, 16 * MIB, False),
        ([(KEY, "0" * 17 + "9")], 16 * MIB, 9, True),
        ([(KEY, "9" * 18)], 16 * MIB, 16 * MIB, False),
        ([(KEY, "5"), (KEY, "6")], 16 * MIB, 5, True),
    ],
)
def test_the_limit_is_what_both_sides_take(
    metadata: list[tuple[str, str]], most: int, max_bytes: int, can_be_raised: bool
) -> None:
    """By the metadata, or else gRPC's 4 MiB, and at most the server's own."""
    assert limit_of(*metadata, most=most) == ResponseLimit(max_bytes, can_be_raised)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "000",
        "-1",
        "+5",
        "1.5",
        "1e7",
        "16 MiB",
        " 5",
        "5 ",
        "0x10",
        "inf",
        "٣",
        "9" * 19,
        "9" * 5000,
    ],
)
def test_what_is_no_number_of_bytes_is_refused(value: str) -> None:
    """A caller who means something else must not get less than it believes."""
    with pytest.raises(InvalidArgument, match="send digits, such as 16777216") as refused:
        limit_of((KEY, value))

    assert refused.value.reason == "ARGUMENT_INVALID"


def test_a_response_may_be_exactly_as_large() -> None:
    """One byte more is refused, with the number, the limit and what to do."""
    limit = ResponseLimit(1000, can_be_raised=True)
    limit.check_classifications(1000)
    limit.check_embeddings("texts", 1000)

    with pytest.raises(LabelsInvalid) as labels:
        limit.check_classifications(1001)
    with pytest.raises(BatchTooLarge) as texts:
        limit.check_embeddings("texts", 1001)

    assert labels.value.message == (
        "labels: the response could have 1001 bytes, limit 1000; set top_k or send fewer images, "
        f"or send the metadata {KEY}"
    )
    assert texts.value.message == (
        "texts: the response could have 1001 bytes, limit 1000; send fewer texts per request, "
        f"or send the metadata {KEY}"
    )


def test_where_metadata_would_not_help_it_is_not_named() -> None:
    """The server sends no more than that to anybody."""
    with pytest.raises(LabelsInvalid, match=r"set top_k or send fewer images$"):
        ResponseLimit(1000, can_be_raised=False).check_classifications(1001)


def test_an_item_has_room_for_less_than_a_call() -> None:
    """Its wrapper counts: the id of 10 bytes, and two tags and lengths, of which one has two bytes."""
    item = ResponseLimit(1000, can_be_raised=False).for_item("i" * 10)
    item.check_classifications(985)

    with pytest.raises(LabelsInvalid, match="could have 1001 bytes"):
        item.check_classifications(986)
