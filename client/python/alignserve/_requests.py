"""Builds request messages from the caller's items and options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc

from alignserve._images import ImageInput, encoded_image, is_pixels
from alignserve._items import ClassifyItem, Dtype, ImageItem, Item, TextItem
from alignserve._results import ModelInfo
from alignserve.errors import FieldViolation, InvalidArgumentError, without_frames
from alignserve.v1 import align_service_pb2 as pb

_Payload = TypeVar("_Payload", bytes, str)

_FORMATS = {
    "float32": pb.EMBEDDING_FORMAT_PACKED_FLOAT32,
    "float16": pb.EMBEDDING_FORMAT_PACKED_FLOAT16,
}
_BYTES_AROUND_ITEM = 16  # tags and lengths of an item, rounded up
_BYTES_AROUND_STREAMED = 48  # correlation id, tags and lengths of a stream message, rounded up


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one request."""

    max_items: float = math.inf
    max_bytes: float = math.inf

    @classmethod
    def of(cls, info: ModelInfo | None) -> Limits:
        """Returns the limits that a server publishes, or no limits if they are not known."""
        return cls(info.max_client_batch_size, info.max_request_bytes) if info else cls()


@dataclass(frozen=True, slots=True)
class Recipe(Generic[_Payload]):
    """How items of one kind become requests.

    Attributes:
        payload: Returns the part of an item that is sent: the bytes of an image file, or the text. Raises
            the original exception if the item cannot be read.
        size: Returns the payload's size in a request, in bytes.
        build: Builds a request from payloads. Any: all kinds of request are handled alike.
        too_large: Builds the error of an item that is too large, given its position and the limit.
    """

    payload: Callable[[Any], _Payload]  # Any: whatever the caller passed
    size: Callable[[_Payload], int]
    build: Callable[[Sequence[_Payload]], Any]
    too_large: Callable[[Any, int, str], InvalidArgumentError]

    def room(self, limits: Limits) -> float:
        """Returns how many bytes of items fit into one request, including their framing."""
        around: int = self.build([]).ByteSize() + _BYTES_AROUND_ITEM
        return limits.max_bytes - around

    def bytes_of(self, payload: _Payload) -> int:
        """Returns the bytes that an item needs, including its framing."""
        return self.size(payload) + _BYTES_AROUND_ITEM

    def check_size(self, item: object, payload: _Payload, position: int, room: float) -> None:
        """Raises `InvalidArgumentError` for an item that is too large for any request."""
        if (size := self.size(payload)) > room:
            fact = f"has {size} bytes, but a request has room for {room:.0f}"
            raise self.too_large(item, position, fact)


def embed_image_recipe(*, normalize: bool, dtype: Dtype, include_stats: bool) -> Recipe[bytes]:
    """Returns the recipe for requests that embed images."""
    options = _embedding_options(normalize, dtype)

    def build(contents: Sequence[bytes]) -> pb.EmbedImageRequest:
        return pb.EmbedImageRequest(
            images=_images(contents), embedding_options=options, include_stats=include_stats
        )

    return Recipe(encoded_image, len, build, _image_too_large)


def embed_text_recipe(*, truncate: bool, normalize: bool, dtype: Dtype, include_stats: bool) -> Recipe[str]:
    """Returns the recipe for requests that embed texts."""
    options = _embedding_options(normalize, dtype)

    def build(texts: Sequence[str]) -> pb.EmbedTextRequest:
        return pb.EmbedTextRequest(
            texts=texts, embedding_options=options, truncate=truncate, include_stats=include_stats
        )

    return Recipe(_sendable_text, _utf8_size, build, _text_too_long)


def classify_recipe(
    *, labels: Sequence[str], prompt_templates: Sequence[str], top_k: int, include_stats: bool
) -> Recipe[bytes]:
    """Returns the recipe for requests that classify images."""
    labels, prompt_templates = strings(labels, "labels"), strings(prompt_templates, "prompt_templates")

    def build(contents: Sequence[bytes]) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(
            images=_images(contents),
            labels=labels,
            prompt_templates=prompt_templates,
            top_k=top_k,
            include_stats=include_stats,
        )

    return Recipe(encoded_image, len, build, _image_too_large)


def prepared(item: Item, max_bytes: int) -> pb.StreamInferRequest | InvalidArgumentError:
    """Returns the message for a stream item, without its correlation id, or the item's error.

    Raises:
        TypeError: It is not an item, or one of its options has the wrong type.
        ValueError: An option has an unknown value.
    """
    field, value, recipe = _item_parts(item)
    try:
        payload = readable_payload(recipe, value)
        recipe.check_size(value, payload, 0, recipe.room(Limits(1, max_bytes - _BYTES_AROUND_STREAMED)))
        return pb.StreamInferRequest(**{field: recipe.build([payload])})
    except UnicodeEncodeError as error:  # of a label
        return _unreadable(error)
    except InvalidArgumentError as error:
        return without_frames(error)


def readable_payload(recipe: Recipe[_Payload], item: object) -> _Payload:
    """Returns an item's payload; any exception while reading it becomes `InvalidArgumentError`."""
    try:
        return recipe.payload(item)
    except Exception as error:  # imaging libraries raise anything, and one image must not end the call
        raise _unreadable(error) from error


def stream_options(*, ordered: bool) -> pb.StreamInferRequest:
    """Returns the first message of a stream."""
    order = pb.DELIVERY_ORDER_AS_REQUESTED if ordered else pb.DELIVERY_ORDER_AS_COMPLETED
    return pb.StreamInferRequest(stream_options=pb.StreamOptions(delivery_order=order))


def reads_files(item: Item) -> bool:
    """Returns whether preparing the item takes too long for an event loop."""
    return isinstance(item, (ImageItem, ClassifyItem)) and not isinstance(item.image, bytes)


def strings(values: Sequence[str], name: str) -> list[str]:
    """Returns the values as a list.

    Raises:
        TypeError: It is one string, or has an element that is not a string.
    """
    if isinstance(values, str):  # a string is a sequence of its letters
        raise TypeError(f"{name} is one string; put it into a list")
    checked: list[object] = list(values)
    for position, value in enumerate(checked):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{position}] is {type(value).__name__}; give str")
    return cast("list[str]", checked)


def _item_parts(item: Item) -> tuple[str, object, Recipe[Any]]:
    """Returns the field of the stream's message, the input, and its recipe."""
    if isinstance(item, ImageItem):
        images = embed_image_recipe(normalize=item.normalize, dtype=item.dtype, include_stats=False)
        return "embed_image", item.image, images
    if isinstance(item, TextItem):
        strings([item.text], "texts")
        texts = embed_text_recipe(
            truncate=item.truncate, normalize=item.normalize, dtype=item.dtype, include_stats=False
        )
        return "embed_text", item.text, texts
    if isinstance(item, ClassifyItem):
        classified = classify_recipe(
            labels=item.labels,
            prompt_templates=item.prompt_templates,
            top_k=item.top_k,
            include_stats=False,
        )
        return "classify", item.image, classified
    raise TypeError(f"{type(item).__name__} is not an item; stream ImageItem, TextItem or ClassifyItem")


def _unreadable(error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"cannot read the input: {error}", grpc.StatusCode.INVALID_ARGUMENT, "INPUT_UNREADABLE"
    )


def _image_too_large(image: ImageInput, position: int, fact: str) -> InvalidArgumentError:
    advice = (
        "pixels are sent as PNG, so give the image file instead, or encode it as JPEG"
        if is_pixels(image)
        else "send a smaller one"
    )
    return _invalid("IMAGE_TOO_LARGE", f"images[{position}].content", f"image {fact}; {advice}")


def _text_too_long(_: str, position: int, fact: str) -> InvalidArgumentError:
    return _invalid("TEXT_TOO_LONG", f"texts[{position}]", f"text {fact}; shorten it")


def _invalid(reason: str, path: str, message: str) -> InvalidArgumentError:
    # in the form of the server's own errors
    violation = FieldViolation(path, message, reason)
    return InvalidArgumentError(f"{path}: {message}", grpc.StatusCode.INVALID_ARGUMENT, reason, [violation])


def _images(contents: Sequence[bytes]) -> list[pb.Image]:
    return [pb.Image(content=content) for content in contents]


def _embedding_options(normalize: bool, dtype: Dtype) -> pb.EmbeddingOptions:
    if dtype not in _FORMATS:
        raise ValueError(f"dtype {dtype!r} is unknown; use float32 or float16")
    return pb.EmbeddingOptions(skip_normalization=not normalize, format=_FORMATS[dtype])


def _sendable_text(text: str) -> str:
    text.encode()  # a lone surrogate has no UTF-8 form, so no message could be built
    return text


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
