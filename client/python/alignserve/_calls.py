"""The calls that may become several requests, as values: what to send, and what the answers make together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from alignserve import _requests, _responses
from alignserve._images import ImageInput
from alignserve._items import Dtype
from alignserve._requests import Limits, Part
from alignserve._results import ImageClassifications, ImageEmbeddings, TextEmbeddings
from alignserve.errors import AlignserveError, ResourceExhaustedError

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[_Result]):
    """One call of a client.

    Attributes:
        rpc: Name of the method at the server.
        items: The images or texts.
        parts: Makes the requests, each when it is wanted. Any: the kinds of request travel alike.
        join: Makes the result of their responses.
        reads_files: Whether making a request takes long enough to keep it off an event loop.
    """

    rpc: str
    items: Sequence[object]
    parts: Callable[[Limits], Iterator[Part[Any]]]
    join: Callable[[Sequence[Any]], _Result]
    reads_files: bool = False


def embed_image(images: Sequence[ImageInput], *, normalize: bool, dtype: Dtype) -> Call[ImageEmbeddings]:
    """Returns the call that embeds images."""
    parts = functools.partial(
        _requests.embed_image_parts, images, normalize=normalize, dtype=dtype, include_stats=True
    )
    return Call("EmbedImage", images, parts, _responses.image_embeddings, _reads_files(images))


def embed_text(
    texts: Sequence[str], *, truncate: bool, normalize: bool, dtype: Dtype
) -> Call[TextEmbeddings]:
    """Returns the call that embeds texts."""
    parts = functools.partial(
        _requests.embed_text_parts,
        texts,
        truncate=truncate,
        normalize=normalize,
        dtype=dtype,
        include_stats=True,
    )
    return Call("EmbedText", texts, parts, _responses.text_embeddings)


def classify(
    images: Sequence[ImageInput], labels: Sequence[str], *, prompt_templates: Sequence[str], top_k: int
) -> Call[ImageClassifications]:
    """Returns the call that classifies images."""
    parts = functools.partial(
        _requests.classify_parts,
        images,
        labels=labels,
        prompt_templates=prompt_templates,
        top_k=top_k,
        include_stats=True,
    )
    return Call("Classify", images, parts, _responses.image_classifications, _reads_files(images))


def is_about_limits(error: AlignserveError) -> bool:
    """Says whether a request may have been refused for being larger than the server allows by now.

    gRPC itself refuses too many bytes, and adds no reason.
    """
    if isinstance(error, ResourceExhaustedError):
        return not error.reason and error.retry_delay_seconds is None
    return error.reason == "BATCH_TOO_LARGE"


def _reads_files(images: Sequence[ImageInput]) -> bool:
    return not all(isinstance(image, bytes) for image in images)
