"""Lists cut into requests."""

from __future__ import annotations

import pytest
from alignserve import ClassifyItem, ImageItem, InvalidArgumentError, TextItem
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
    read: list[int] = []

    def images() -> object:
        for number in range(6):
            read.append(number)
            yield b"x"

    parts = embed_image_parts(
        images(),  # type: ignore[arg-type]
        Limits(2),
        normalize=True,
        dtype="float32",
        include_stats=False,
    )
    next(parts)

    assert read == [0, 1, 2]


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
        (TextItem("x", dtype="int8"), "INPUT_UNREADABLE"),  # type: ignore[arg-type]
        (ClassifyItem(b"x", "cat"), "INPUT_UNREADABLE"),
        ("no item", "INPUT_UNREADABLE"),
        (ImageItem(bytes(1000)), "IMAGE_TOO_LARGE"),
    ],
    ids=["no file", "no image", "no dtype", "labels in one string", "no item", "larger than a request"],
)
def test_an_item_that_cannot_be_sent_is_an_error_not_an_exception(item: object, reason: str) -> None:
    """One bad item must not end a stream before it has begun."""
    error = prepared(item, 1000)  # type: ignore[arg-type]

    assert isinstance(error, InvalidArgumentError)
    assert error.reason == reason
