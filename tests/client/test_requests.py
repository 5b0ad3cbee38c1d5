"""Items of streams become messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alignserve import ClassifyItem, ImageItem, InvalidArgumentError, Item, TextItem
from alignserve._requests import prepared
from alignserve.v1 import align_service_pb2 as pb


def test_embeddings_travel_packed() -> None:
    """Items request the wire format that is fast to read in Python."""
    message = prepared(ImageItem(b"x", normalize=False, dtype="float16"), 1000)

    assert isinstance(message, pb.StreamInferRequest)
    options = message.embed_image.embedding_options
    assert options.format == pb.EMBEDDING_FORMAT_PACKED_FLOAT16
    assert options.skip_normalization


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (ImageItem("nowhere.jpg"), "INPUT_UNREADABLE"),
        (ImageItem(3), "INPUT_UNREADABLE"),  # type: ignore[arg-type]
        (ClassifyItem(np.zeros((2, 2)), ["cat"]), "INPUT_UNREADABLE"),  # type: ignore[arg-type]
        (TextItem("\ud800"), "INPUT_UNREADABLE"),
        (ImageItem(bytes(1000)), "IMAGE_TOO_LARGE"),
        (ClassifyItem(bytes(1000), ["cat"]), "IMAGE_TOO_LARGE"),
        (TextItem("x" * 1000), "TEXT_TOO_LONG"),
    ],
    ids=[
        "no file",
        "no image",
        "floats",
        "no Unicode",
        "large image",
        "large image to classify",
        "large text",
    ],
)
def test_an_input_that_cannot_be_sent_is_an_error_not_an_exception(item: Item, reason: str) -> None:
    """An unreadable input is an error of its item, and does not end the stream."""
    error = prepared(item, 1000)

    assert isinstance(error, InvalidArgumentError)
    assert error.reason == reason


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("no item", TypeError, "str is not an item; stream ImageItem, TextItem, ClassifyItem"),
        (TextItem(5), TypeError, r"texts\[0\] is int; give str"),  # type: ignore[arg-type]
        (TextItem("x", dtype="int4"), ValueError, "dtype 'int4' is unknown"),  # type: ignore[arg-type]
        (ClassifyItem(b"x", "cat"), TypeError, "labels is one string; put it into a list"),
        (ClassifyItem(b"x", ["cat", 1.5]), TypeError, r"labels\[1\] is float; give str"),  # type: ignore[list-item]
    ],
    ids=["no item", "no text", "no dtype", "labels in one string", "label that is none"],
)
def test_a_mistake_of_the_caller_is_an_exception(item: Any, error: type[Exception], message: str) -> None:
    """A programming error is raised, not treated as a bad input."""
    with pytest.raises(error, match=message):
        prepared(item, 1000)


def test_streamed_messages_stay_within_the_byte_limit() -> None:
    """The largest accepted image gives a message within the server's limit, including its id."""
    sizes = (900, 920, 940, 950, 960, 980)

    messages = [prepared(ImageItem(bytes(size)), 1000) for size in sizes]

    sent = [message for message in messages if isinstance(message, pb.StreamInferRequest)]
    for message in sent:
        message.correlation_id = "9" * 20
    assert 0 < len(sent) < len(sizes)
    assert all(message.ByteSize() <= 1000 for message in sent)
