"""Lists cut into requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alignserve import ClassifyItem, ImageInput, ImageItem, InvalidArgumentError, Item, TextItem
from alignserve._requests import Limits, chunks, classify_parts, embed_image_parts, prepared
from alignserve.v1 import align_service_pb2 as pb


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1], [[1]]),
        ([1, 1, 1], [[1, 1, 1]]),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
        ([4, 6, 1], [[4, 6], [1]]),
        ([4, 7], [[4], [7]]),
        ([99, 1], [[99], [1]]),
    ],
    ids=[
        "empty",
        "one",
        "exactly full",
        "one over",
        "exactly full of bytes",
        "bytes over",
        "too large alone",
    ],
)
def test_chunks_hold_at_most_three_items_and_ten_bytes(sizes: list[int], expected: list[list[int]]) -> None:
    """Lists are cut where the next item would exceed a limit."""
    assert list(chunks(sizes, lambda size: size, 3, 10)) == expected


def test_requests_stay_within_the_byte_limit() -> None:
    """What is sent is never larger than the server reads, labels included."""
    images = [bytes(size) for size in (400, 500, 300, 90, 10)]

    parts = list(
        classify_parts(
            images,
            Limits(64, 1000),
            labels=["cat"] * 20,
            prompt_templates=(),
            top_k=0,
            include_stats=False,
        )
    )

    assert [part.offset for part in parts] == [0, 1, 3]
    assert all(part.request.ByteSize() <= 1000 for part in parts)
    assert [image.content for part in parts for image in part.request.images] == images


def test_images_are_read_only_when_their_request_is_wanted() -> None:
    """A long list of files is never in memory at once."""
    read: list[ImageInput] = []

    def encode(image: ImageInput) -> bytes:
        read.append(image)
        return b"x"

    images: list[ImageInput] = ["0", "1", "2", "3", "4", "5"]
    parts = embed_image_parts(
        images, Limits(2), normalize=True, dtype="float32", include_stats=False, encode=encode
    )
    next(parts)

    assert read == ["0", "1", "2"]


def test_embeddings_travel_packed() -> None:
    """The wire format is the one that is quick to read in Python."""
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
    """One bad input must not end a stream."""
    error = prepared(item, 1000)

    assert isinstance(error, InvalidArgumentError)
    assert error.reason == reason


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("no item", TypeError, "str is no item; stream ImageItem, TextItem or ClassifyItem"),
        (TextItem(5), TypeError, r"texts\[0\] is int; give str"),  # type: ignore[arg-type]
        (TextItem("x", dtype="int8"), ValueError, "dtype 'int8' is unknown"),  # type: ignore[arg-type]
        (ClassifyItem(b"x", "cat"), TypeError, "labels is one string; put it into a list"),
        (ClassifyItem(b"x", ["cat", 1.5]), TypeError, r"labels\[1\] is float; give str"),  # type: ignore[list-item]
    ],
    ids=["no item", "no text", "no dtype", "labels in one string", "label that is none"],
)
def test_a_mistake_of_the_caller_is_an_exception(item: Any, error: type[Exception], message: str) -> None:
    """What is wrong in the program, for every input alike, is not taken for a bad input."""
    with pytest.raises(error, match=message):
        prepared(item, 1000)


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (bytes(2000), "send a smaller one"),
        (np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8), "pixels travel as PNG, so give"),
    ],
    ids=["file", "pixels"],
)
def test_an_image_larger_than_a_request_is_named_with_advice(image: ImageInput, advice: str) -> None:
    """The message has the size and what to do, which for pixels is not obvious."""
    parts = embed_image_parts(
        [b"x", b"x", image], Limits(2, 1000), normalize=True, dtype="float32", include_stats=False
    )
    next(parts)

    with pytest.raises(InvalidArgumentError, match=advice) as caught:
        next(parts)

    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert caught.value.violations[0].field == "images[2].content"


def test_streamed_messages_stay_within_the_byte_limit() -> None:
    """The largest image that is not refused makes a message that the server reads, id included."""
    sizes = (900, 920, 940, 950, 960, 980)

    messages = [prepared(ImageItem(bytes(size)), 1000) for size in sizes]

    sent = [message for message in messages if isinstance(message, pb.StreamInferRequest)]
    for message in sent:
        message.correlation_id = "9" * 20
    assert 0 < len(sent) < len(sizes)
    assert all(message.ByteSize() <= 1000 for message in sent)
