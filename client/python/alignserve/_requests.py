"""Calls in the caller's terms, to request messages that the server accepts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import grpc

from alignserve._images import ImageInput, encoded_image, is_pixels
from alignserve._items import ClassifyItem, Dtype, ImageItem, Item, TextItem
from alignserve._results import ModelInfo
from alignserve.errors import FieldViolation, InvalidArgumentError
from alignserve.v1 import align_service_pb2 as pb

Request = TypeVar("Request", pb.EmbedImageRequest, pb.EmbedTextRequest, pb.ClassifyRequest)

_T = TypeVar("_T")

_FORMATS = {
    "float32": pb.EMBEDDING_FORMAT_PACKED_FLOAT32,
    "float16": pb.EMBEDDING_FORMAT_PACKED_FLOAT16,
}
_BYTES_AROUND_ITEM = 16  # tags and lengths of a message's elements, rounded up
_BYTES_AROUND_STREAMED = 48  # of a stream's message: the correlation id, tags and lengths, rounded up


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    max_items: float = math.inf
    max_bytes: float = math.inf

    @classmethod
    def of(cls, info: ModelInfo | None) -> Limits:
        """Returns the limits that a server publishes, or none if it was not asked."""
        return cls(info.max_client_batch_size, info.max_request_bytes) if info else cls()


@dataclass(frozen=True, slots=True)
class Part(Generic[Request]):
    """One request of a call, and where its items begin in the caller's list."""

    request: Request
    offset: int


def embed_image_parts(
    images: Sequence[ImageInput],
    limits: Limits,
    *,
    normalize: bool,
    dtype: Dtype,
    include_stats: bool,
    encode: Callable[[ImageInput], bytes] = encoded_image,
) -> Iterator[Part[pb.EmbedImageRequest]]:
    """Yields requests that together embed the images. Each is read only when its request is wanted."""
    options = _embedding_options(normalize, dtype)

    def build(contents: Sequence[bytes]) -> pb.EmbedImageRequest:
        return pb.EmbedImageRequest(
            images=_images(contents), embedding_options=options, include_stats=include_stats
        )

    return _parts(map(encode, images), len, limits, build, functools.partial(_image_too_large, images))


def embed_text_parts(
    texts: Sequence[str],
    limits: Limits,
    *,
    truncate: bool,
    normalize: bool,
    dtype: Dtype,
    include_stats: bool,
) -> Iterator[Part[pb.EmbedTextRequest]]:
    """Yields requests that together embed the texts."""
    options = _embedding_options(normalize, dtype)
    texts = _strings(texts, "texts")

    def build(chunk: Sequence[str]) -> pb.EmbedTextRequest:
        return pb.EmbedTextRequest(
            texts=chunk, embedding_options=options, truncate=truncate, include_stats=include_stats
        )

    return _parts(texts, _utf8_size, limits, build, _text_too_long)


def classify_parts(
    images: Sequence[ImageInput],
    limits: Limits,
    *,
    labels: Sequence[str],
    prompt_templates: Sequence[str],
    top_k: int,
    include_stats: bool,
    encode: Callable[[ImageInput], bytes] = encoded_image,
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

    return _parts(map(encode, images), len, limits, build, functools.partial(_image_too_large, images))


def prepared(item: Item, max_bytes: int) -> pb.StreamInferRequest | InvalidArgumentError:
    """Returns the message for an item of a stream, still without a correlation id, or why it has none.

    Raises:
        TypeError: It is no item, or one of its options has the wrong type.
        ValueError: An option has an unknown value.
    """
    try:
        return _item_request(item, Limits(1, max_bytes - _BYTES_AROUND_STREAMED))
    except UnicodeEncodeError as error:
        return _unreadable(error)
    except InvalidArgumentError as error:
        return error


def stream_options(*, ordered: bool) -> pb.StreamInferRequest:
    """Returns the first message of a stream."""
    order = pb.DELIVERY_ORDER_AS_REQUESTED if ordered else pb.DELIVERY_ORDER_AS_COMPLETED
    return pb.StreamInferRequest(stream_options=pb.StreamOptions(delivery_order=order))


def reads_files(item: Item) -> bool:
    """Says whether preparing the item takes long enough to keep it off an event loop."""
    return isinstance(item, (ImageItem, ClassifyItem)) and not isinstance(item.image, bytes)


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


def _item_request(item: Item, limits: Limits) -> pb.StreamInferRequest:
    if isinstance(item, ImageItem):
        images = embed_image_parts(
            [item.image],
            limits,
            normalize=item.normalize,
            dtype=item.dtype,
            include_stats=False,
            encode=_encoded_item,
        )
        return pb.StreamInferRequest(embed_image=next(images).request)
    if isinstance(item, TextItem):
        texts = embed_text_parts(
            [item.text],
            limits,
            truncate=item.truncate,
            normalize=item.normalize,
            dtype=item.dtype,
            include_stats=False,
        )
        return pb.StreamInferRequest(embed_text=next(texts).request)
    if isinstance(item, ClassifyItem):
        classified = classify_parts(
            [item.image],
            limits,
            labels=item.labels,
            prompt_templates=item.prompt_templates,
            top_k=item.top_k,
            include_stats=False,
            encode=_encoded_item,
        )
        return pb.StreamInferRequest(classify=next(classified).request)
    raise TypeError(f"{type(item).__name__} is no item; stream ImageItem, TextItem or ClassifyItem")


def _encoded_item(image: ImageInput) -> bytes:
    try:
        return encoded_image(image)
    except Exception as error:  # an imaging library raises anything, and one image must not end all
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"cannot read the input: {error}", grpc.StatusCode.INVALID_ARGUMENT, "INPUT_UNREADABLE"
    )


def _parts(
    items: Iterable[_T],
    size: Callable[[_T], int],
    limits: Limits,
    build: Callable[[Sequence[_T]], Request],
    too_large: Callable[[int, str], InvalidArgumentError],
) -> Iterator[Part[Request]]:
    available = limits.max_bytes - build([]).ByteSize() - _BYTES_AROUND_ITEM
    offset = 0
    for chunk in chunks(items, lambda item: size(item) + _BYTES_AROUND_ITEM, limits.max_items, available):
        if size(chunk[0]) > available:
            raise too_large(offset, f"has {size(chunk[0])} bytes, and a request has room for {available:.0f}")
        yield Part(build(chunk), offset)
        offset += len(chunk)


def _image_too_large(images: Sequence[ImageInput], position: int, fact: str) -> InvalidArgumentError:
    advice = (
        "pixels travel as PNG, so give the image's file, or encode it as JPEG"
        if is_pixels(images[position])
        else "send a smaller one"
    )
    return _invalid("IMAGE_TOO_LARGE", f"images[{position}].content", f"image {fact}; {advice}")


def _text_too_long(position: int, fact: str) -> InvalidArgumentError:
    return _invalid("TEXT_TOO_LONG", f"texts[{position}]", f"text {fact}; shorten it")


def _invalid(reason: str, path: str, message: str) -> InvalidArgumentError:
    # in the form that the server gives such errors
    violation = FieldViolation(path, message, reason)
    return InvalidArgumentError(f"{path}: {message}", grpc.StatusCode.INVALID_ARGUMENT, reason, [violation])


def _images(contents: Sequence[bytes]) -> list[pb.Image]:
    return [pb.Image(content=content) for content in contents]


def _embedding_options(normalize: bool, dtype: Dtype) -> pb.EmbeddingOptions:
    if dtype not in _FORMATS:
        raise ValueError(f"dtype {dtype!r} is unknown; use float32 or float16")
    return pb.EmbeddingOptions(skip_normalization=not normalize, format=_FORMATS[dtype])


def _strings(values: Sequence[str], name: str) -> list[str]:
    if isinstance(values, str):  # a string is a sequence of its letters
        raise TypeError(f"{name} is one string; put it into a list")
    strings: list[object] = list(values)
    for position, value in enumerate(strings):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{position}] is {type(value).__name__}; give str")
    return cast("list[str]", strings)


def _utf8_size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))  # a lone surrogate is refused where the message is built
