"""Builds request messages from the caller's items and options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc

from alignserve._images import ImageInput, compressed, image_message, image_size, is_pixels
from alignserve._items import ClassifyItem, CompareItem, Dtype, ImageItem, Item, QueryItem, TextItem
from alignserve._queries import QueryTerm, as_terms
from alignserve._results import ModelInfo
from alignserve.errors import FieldViolation, InvalidArgumentError, without_frames
from alignserve.v1 import align_service_pb2 as pb

_Payload = TypeVar("_Payload")

_FORMATS = {
    "float32": pb.EMBEDDING_FORMAT_PACKED_FLOAT32,
    "float16": pb.EMBEDDING_FORMAT_PACKED_FLOAT16,
    "int8": pb.EMBEDDING_FORMAT_PACKED_INT8,
    "binary": pb.EMBEDDING_FORMAT_PACKED_BINARY,
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
        payload: Returns the part of an item that is sent: a text or a message. Raises the original exception
            if the item cannot be read.
        size: Returns the payload's size in a request, in bytes.
        build: Builds a request from payloads. Any: all kinds of request are handled alike.
        too_large: Builds the error of an item that is too large, given its position and the limit.
        compress: Returns the payload in fewer bytes, if that is possible: pixels become PNG.
        count: Returns how many of `ModelInfo.max_client_batch_size` the payload uses.
    """

    payload: Callable[[Any], _Payload]  # Any: whatever the caller passed
    size: Callable[[_Payload], int]
    build: Callable[[Sequence[_Payload]], Any]
    too_large: Callable[[Any, int, str], InvalidArgumentError]
    compress: Callable[[_Payload], _Payload] = lambda payload: payload
    count: Callable[[_Payload], int] = lambda _: 1

    def room(self, limits: Limits) -> float:
        """Returns how many bytes of items fit into one request, including their framing."""
        around: int = self.build([]).ByteSize() + _BYTES_AROUND_ITEM
        return limits.max_bytes - around

    def bytes_of(self, payload: _Payload) -> int:
        """Returns the bytes that an item needs, including its framing."""
        return self.size(payload) + _BYTES_AROUND_ITEM

    def fitted(self, item: object, payload: _Payload, position: int, room: float) -> _Payload:
        """Returns the payload of a request's first item, compressed if it would not fit otherwise.

        Raises:
            InvalidArgumentError: It is too large for any request.
        """
        if self.size(payload) <= room:
            return payload
        smaller = self.compress(payload)
        if (size := self.size(smaller)) <= room:
            return smaller
        raise self.too_large(item, position, f"has {size} bytes, but a request has room for {room:.0f}")


def embed_image_recipe(*, normalize: bool, dtype: Dtype, include_stats: bool) -> Recipe[pb.Image]:
    """Returns the recipe for requests that embed images."""
    options = _embedding_options(normalize, dtype)

    def build(images: Sequence[pb.Image]) -> pb.EmbedImageRequest:
        return pb.EmbedImageRequest(images=images, embedding_options=options, include_stats=include_stats)

    return Recipe(image_message, image_size, build, _image_too_large, compressed)


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
) -> Recipe[pb.Image]:
    """Returns the recipe for requests that classify images."""
    labels, prompt_templates = strings(labels, "labels"), strings(prompt_templates, "prompt_templates")

    def build(images: Sequence[pb.Image]) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(
            images=images,
            labels=labels,
            prompt_templates=prompt_templates,
            top_k=top_k,
            include_stats=include_stats,
        )

    return Recipe(image_message, image_size, build, _image_too_large, compressed)


def compare_recipe(*, truncate: bool, include_stats: bool) -> Recipe[pb.ImageTextPair]:
    """Returns the recipe for requests that compare images with texts; an item is such a pair."""

    def payload(pair: tuple[ImageInput, str]) -> pb.ImageTextPair:
        image, text = pair
        return pb.ImageTextPair(image=image_message(image), text=_sendable_text(text))

    def size(pair: pb.ImageTextPair) -> int:
        return image_size(pair.image) + _BYTES_AROUND_ITEM + _utf8_size(pair.text)

    def build(pairs: Sequence[pb.ImageTextPair]) -> pb.CompareRequest:
        return pb.CompareRequest(pairs=pairs, truncate=truncate, include_stats=include_stats)

    def compress(pair: pb.ImageTextPair) -> pb.ImageTextPair:
        return pb.ImageTextPair(image=compressed(pair.image), text=pair.text)

    return Recipe(payload, size, build, _pair_too_large, compress)


def embed_query_recipe(
    *, truncate: bool, normalize: bool, dtype: Dtype, include_stats: bool
) -> Recipe[pb.ComposedQuery]:
    """Returns the recipe for requests that embed composed queries; an item is a list of terms."""
    options = _embedding_options(normalize, dtype)

    def payload(terms: Sequence[QueryTerm]) -> pb.ComposedQuery:
        return pb.ComposedQuery(terms=map(_term_message, terms))

    def size(query: pb.ComposedQuery) -> int:
        return sum(
            image_size(term.image) + _utf8_size(term.text) + 2 * _BYTES_AROUND_ITEM for term in query.terms
        )

    def build(queries: Sequence[pb.ComposedQuery]) -> pb.EmbedQueryRequest:
        return pb.EmbedQueryRequest(
            queries=queries, embedding_options=options, truncate=truncate, include_stats=include_stats
        )

    def count(query: pb.ComposedQuery) -> int:
        return len(query.terms) or 1  # the number of queries has the same limit

    return Recipe(payload, size, build, _query_too_large, _compressed_query, count)


def prepared(item: Item, max_bytes: int) -> pb.StreamInferRequest | InvalidArgumentError:
    """Returns the message for a stream item, without its correlation id, or the item's error.

    Raises:
        TypeError: It is not an item, or one of its options has the wrong type.
        ValueError: An option has an unknown value.
    """
    field, value, recipe = _item_parts(item)
    try:
        payload = readable_payload(recipe, value)
        room = recipe.room(Limits(1, max_bytes - _BYTES_AROUND_STREAMED))
        return pb.StreamInferRequest(**{field: recipe.build([recipe.fitted(value, payload, 0, room)])})
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
    if isinstance(item, (ImageItem, ClassifyItem, CompareItem)):
        return not isinstance(item.image, bytes)
    return isinstance(item, QueryItem)  # it may have images


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
    if isinstance(item, CompareItem):
        strings([item.text], "texts")
        pairs = compare_recipe(truncate=item.truncate, include_stats=False)
        return "compare", (item.image, item.text), pairs
    if isinstance(item, QueryItem):
        queries = embed_query_recipe(
            truncate=item.truncate, normalize=item.normalize, dtype=item.dtype, include_stats=False
        )
        return "embed_query", as_terms(item.query), queries
    raise TypeError(
        f"{type(item).__name__} is not an item; stream ImageItem, TextItem, ClassifyItem, CompareItem or "
        "QueryItem"
    )


def _unreadable(error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"cannot read the input: {error}", grpc.StatusCode.INVALID_ARGUMENT, "INPUT_UNREADABLE"
    )


def _term_message(term: QueryTerm) -> pb.QueryTerm:
    if term.text is not None:
        return pb.QueryTerm(text=_sendable_text(term.text), weight=term.weight)
    return pb.QueryTerm(image=image_message(cast("ImageInput", term.image)), weight=term.weight)


def _compressed_query(query: pb.ComposedQuery) -> pb.ComposedQuery:
    smaller = pb.ComposedQuery()
    smaller.CopyFrom(query)
    for term in smaller.terms:
        if term.HasField("image"):
            term.image.CopyFrom(compressed(term.image))
    return smaller


def _image_too_large(image: ImageInput, position: int, fact: str) -> InvalidArgumentError:
    path = f"images[{position}].content"
    return _invalid("IMAGE_TOO_LARGE", path, f"image {fact}; {_advice_on_size(image)}")


def _pair_too_large(pair: tuple[ImageInput, str], position: int, fact: str) -> InvalidArgumentError:
    path = f"pairs[{position}].image.content"
    return _invalid("IMAGE_TOO_LARGE", path, f"pair {fact}; {_advice_on_size(pair[0])}")


def _query_too_large(_: Any, position: int, fact: str) -> InvalidArgumentError:
    return _invalid("IMAGE_TOO_LARGE", f"queries[{position}]", f"query {fact}; send smaller images")


def _advice_on_size(image: ImageInput) -> str:
    if is_pixels(image):
        return "its pixels are too large even as PNG, so give the image file instead, or encode it as JPEG"
    return "send a smaller one"


def _text_too_long(_: str, position: int, fact: str) -> InvalidArgumentError:
    return _invalid("TEXT_TOO_LONG", f"texts[{position}]", f"text {fact}; shorten it")


def _invalid(reason: str, path: str, message: str) -> InvalidArgumentError:
    # in the form of the server's own errors
    violation = FieldViolation(path, message, reason)
    return InvalidArgumentError(f"{path}: {message}", grpc.StatusCode.INVALID_ARGUMENT, reason, [violation])


def _embedding_options(normalize: bool, dtype: Dtype) -> pb.EmbeddingOptions:
    if dtype not in _FORMATS:
        raise ValueError(f"dtype {dtype!r} is unknown; use {', '.join(_FORMATS)}")
    return pb.EmbeddingOptions(skip_normalization=not normalize, format=_FORMATS[dtype])


def _sendable_text(text: str) -> str:
    text.encode()  # a lone surrogate has no UTF-8 form, so no message could be built
    return text


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
