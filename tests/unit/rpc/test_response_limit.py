"""A response is at most as large as the client accepts and the server sends."""

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
def test_the_limit_suits_client_and_server(
    metadata: list[tuple[str, str]], most: int, max_bytes: int, can_be_raised: bool
) -> None:
    """It comes from the metadata, otherwise it is gRPC's 4 MiB; it is at most the server's own limit."""
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
def test_an_invalid_number_of_bytes_is_refused(value: str) -> None:
    """Otherwise the client would get a lower limit than it expects."""
    with pytest.raises(InvalidArgument, match="send a number of bytes, such as 16777216") as refused:
        limit_of((KEY, value))

    assert refused.value.reason == "ARGUMENT_INVALID"


def test_a_response_may_be_as_large_as_the_limit() -> None:
    """One byte more is refused; the message has the size, the limit and what to do."""
    limit = ResponseLimit(1000, can_be_raised=True)
    limit.check_classifications("labels", 1000)
    limit.check_embeddings("texts", 1000)

    with pytest.raises(LabelsInvalid) as labels:
        limit.check_classifications("labels", 1001)
    with pytest.raises(BatchTooLarge) as texts:
        limit.check_embeddings("texts", 1001)

    assert labels.value.message == (
        "labels: the response could have up to 1001 bytes, limit 1000; set top_k or send fewer images, "
        f"or send the metadata {KEY}"
    )
    assert texts.value.message == (
        "texts: the response could have up to 1001 bytes, limit 1000; send fewer texts per request, "
        f"or send the metadata {KEY}"
    )


def test_metadata_is_not_suggested_if_it_would_not_help() -> None:
    """The server never sends more than its own limit."""
    with pytest.raises(LabelsInvalid, match=r"set top_k or send fewer images$"):
        ResponseLimit(1000, can_be_raised=False).check_classifications("labels", 1001)


def test_the_response_to_an_item_can_be_less_large_than_that_to_a_call() -> None:
    """Its wrapper counts: the id of 10 bytes, and two tags and lengths, one of which has two bytes."""
    item = ResponseLimit(1000, can_be_raised=False).for_item("i" * 10)
    item.check_classifications("labels", 985)

    with pytest.raises(LabelsInvalid, match="could have up to 1001 bytes"):
        item.check_classifications("labels", 986)
