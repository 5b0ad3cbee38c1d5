"""Calls in the caller's terms, to request messages that the server accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from alignserve._images import ImageInput, encoded_image
from alignserve._items import ClassifyItem, Dtype, ImageItem, Item, TextItem
from alignserve._results import ModelInfo
from alignserve.errors import InvalidArgumentError
from alignserve.v1 import align_service_pb2 as pb

Request = TypeVar("Request", pb.EmbedImageRequest, pb.EmbedTextRequest, pb.ClassifyRequest)

_T = TypeVar("_T")

_FORMATS = {
    "float32": pb.EMBEDDING_FORMAT_PACKED_FLOAT32,
    "float16": pb.EMBEDDING_FORMAT_PACKED_FLOAT16,
}
_BYTES_OF_CORRELATION_ID = 32  # rounded up
_BYTES_AROUND_ITEM = 16  # tags and lengths of a message's elements, rounded up


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    max_items: float = math.inf
    max_bytes: float = math.inf

    @classmethod
    def of(cls, info: ModelInfo) -> Limits:
        """Returns the limits that a server publishes."""
        return cls(info.max_client_batch_size, info.max_request_bytes)


@dataclass(frozen=True, slots=True)
class Part(Generic[Request]):
    """One request of a call, and where its items begin in the caller's list."""

    request: Request
    offset: int


def embed_image_parts(
    images: Iterable[ImageInput], limits: Limits, *, normalize: bool, dtype: Dtype, include_stats: bool
) -> Iterator[Part[pb.EmbedImageRequest]]:
    """Yields requests that together embed the images. Each is read only when its request is wanted."""
    options = _embedding_options(normalize, dtype)

    def build(contents: Sequence[bytes]) -> pb.EmbedImageRequest:
        return pb.EmbedImageRequest(
            images=_images(contents), embedding_options=options, include_stats=include_stats
        )

    return _parts(map(encoded_image, images), len, limits, build)


def embed_text_parts(
    texts: Iterable[str],
    limits: Limits,
    *,
    truncate: bool,
    normalize: bool,
    dtype: Dtype,
    include_stats: bool,
) -> Iterator[Part[pb.EmbedTextRequest]]:
    """Yields requests that together embed the texts."""
    options = _embedding_options(normalize, dtype)

    def build(chunk: Sequence[str]) -> pb.EmbedTextRequest:
        return pb.EmbedTextRequest(
            texts=chunk, embedding_options=options, truncate=truncate, include_stats=include_stats
        )

    return _parts(texts, _utf8_size, limits, build)


def classify_parts(
    images: Iterable[ImageInput],
    limits: Limits,
    *,
    labels: Sequence[str],
    prompt_templates: Sequence[str],
    top_k: int,
    include_stats: bool,
) -> Iterator[Part[pb.ClassifyRequest]]:
    """Yields requests that together classify the images. Each is read only when its request is wanted."""
    labels, prompt_templates = _strings(labels, "labels"), _strings(prompt_templates, "prompt_templates")

    def build(contents: Sequence[bytes]) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(
            images=_images(contents),
            labels=labels,
            prompt_templates=prompt_templates,
            top_k=top_k,
            include_stats=include_stats,
        )

    return _parts(map(encoded_image, images), len, limits, build)


def prepared(item: Item, max_bytes: int) -> pb.StreamInferRequest | InvalidArgumentError:
    """Returns the message for an item of a stream, still without a correlation id, or why there is none."""
    try:
        request = _item_request(item)
    except Exception as error:  # noqa: BLE001 — an imaging library raises anything; one item must not end all
        return _unusable("INPUT_UNREADABLE", f"cannot read the input: {error}", error)
    size = request.ByteSize() + _BYTES_OF_CORRELATION_ID
    if size > max_bytes:
        return _unusable("IMAGE_TOO_LARGE", f"item has {size} bytes, limit {max_bytes}; send a smaller one")
    return request


def stream_options(*, ordered: bool) -> pb.StreamInferRequest:
    """Returns the first message of a stream."""
    order = pb.DELIVERY_ORDER_AS_REQUESTED if ordered else pb.DELIVERY_ORDER_AS_COMPLETED
    return pb.StreamInferRequest(stream_options=pb.StreamOptions(delivery_order=order))


def reads_files(item: Item) -> bool:
    """Says whether preparing the item takes long enough to keep it off an event loop."""
    return not isinstance(item, TextItem) and not isinstance(item.image, bytes)


def chunks(
    items: Iterable[_T], size: Callable[[_T], int], max_items: float, max_total: float
) -> Iterator[list[_T]]:
    """Cuts items into lists of at most `max_items` whose sizes add up to at most `max_total`.

    An item that is larger alone gets a list of its own; whoever receives it can say so.
    """
    chunk: list[_T] = []
    total = 0
    for item in items:
        item_size = size(item)
        if chunk and (len(chunk) >= max_items or total + item_size > max_total):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += item_size
    if chunk:
        yield chunk


def _unusable(reason: str, message: str, cause: Exception | None = None) -> InvalidArgumentError:
    error = InvalidArgumentError(message, grpc.StatusCode.INVALID_ARGUMENT, reason)
    error.__cause__ = cause
    return error


def _item_request(item: Item) -> pb.StreamInferRequest:
    one = Limits()
    if isinstance(item, ImageItem):
        images = embed_image_parts(
            [item.image], one, normalize=item.normalize, dtype=item.dtype, include_stats=False
        )
        return pb.StreamInferRequest(embed_image=next(images).request)
    if isinstance(item, TextItem):
        texts = embed_text_parts(
            [item.text],
            one,
            truncate=item.truncate,
            normalize=item.normalize,
            dtype=item.dtype,
            include_stats=False,
        )
        return pb.StreamInferRequest(embed_text=next(texts).request)
    if isinstance(item, ClassifyItem):
        classified = classify_parts(
            [item.image],
            one,
            labels=item.labels,
            prompt_templates=item.prompt_templates,
            top_k=item.top_k,
            include_stats=False,
        )
        return pb.StreamInferRequest(classify=next(classified).request)
    raise TypeError(f"{type(item).__name__} is no item; stream ImageItem, TextItem or ClassifyItem")


def _parts(
    items: Iterable[_T],
    size: Callable[[_T], int],
    limits: Limits,
    build: Callable[[Sequence[_T]], Request],
) -> Iterator[Part[Request]]:
    available = limits.max_bytes - build([]).ByteSize()
    offset = 0
    for chunk in chunks(items, lambda item: size(item) + _BYTES_AROUND_ITEM, limits.max_items, available):
        yield Part(build(chunk), offset)
        offset += len(chunk)


def _images(contents: Sequence[bytes]) -> list[pb.Image]:
    return [pb.Image(content=content) for content in contents]


def _embedding_options(normalize: bool, dtype: Dtype) -> pb.EmbeddingOptions:
    if dtype not in _FORMATS:
        raise ValueError(f"dtype {dtype!r} is unknown; use float32 or float16")
    return pb.EmbeddingOptions(skip_normalization=not normalize, format=_FORMATS[dtype])


def _strings(values: Sequence[str], name: str) -> list[str]:
    if isinstance(values, str):  # a string is a sequence of its letters
        raise TypeError(f"{name} is one string; put it into a list")
    return list(values)


def _utf8_size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))  # a lone surrogate is refused where the message is built
