"""Calls that may be split into several requests: what to send, and how to combine the answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from alignserve import _requests, _responses
from alignserve._images import ImageInput
from alignserve._items import Dtype
from alignserve._queries import QueryTerm
from alignserve._requests import Recipe, strings
from alignserve._responses import Answer, Outcome
from alignserve._results import (
    Comparisons,
    ImageClassifications,
    ImageEmbeddings,
    QueryEmbeddings,
    TextEmbeddings,
)
from alignserve.errors import AlignserveError, ResourceExhaustedError

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class SplitRequest(Generic[_Result]):
    """A client call for a list of items, which becomes one request or several.

    Attributes:
        rpc: Name of the RPC.
        items: The images, texts, pairs or queries.
        recipe: How they become requests. Any: texts or messages.
        read: Splits a response into items. Any: all kinds of response are handled alike.
        result: Builds the result, given the embedding dimension for missing rows.
        reads_files: Whether building a request takes too long for an event loop.
        makes_rows: Whether the result is an array, which has a width even if it has no rows.
    """

    rpc: str
    items: Sequence[object]
    recipe: Recipe[Any]
    read: Callable[[Any], Answer]
    result: Callable[[Outcome, int], _Result]
    reads_files: bool = False
    makes_rows: bool = True
    terms: int = 0  # of all queries together, which the server counts as items

    @property
    def count(self) -> int:
        """Returns how many items the server counts in all requests together."""
        return self.terms or len(self.items)


def embed_image(
    images: Sequence[ImageInput], *, normalize: bool, dtype: Dtype
) -> SplitRequest[ImageEmbeddings]:
    """Returns the call that embeds images."""
    recipe = _requests.embed_image_recipe(normalize=normalize, dtype=dtype, include_stats=True)
    result = functools.partial(_responses.image_embeddings, dtype=dtype)
    return SplitRequest("EmbedImage", images, recipe, _responses.read_images, result, _reads_files(images))


def embed_text(
    texts: Sequence[str], *, truncate: bool, normalize: bool, dtype: Dtype
) -> SplitRequest[TextEmbeddings]:
    """Returns the call that embeds texts."""
    recipe = _requests.embed_text_recipe(
        truncate=truncate, normalize=normalize, dtype=dtype, include_stats=True
    )
    result = functools.partial(_responses.text_embeddings, dtype=dtype)
    return SplitRequest("EmbedText", strings(texts, "texts"), recipe, _responses.read_texts, result)


def classify(
    images: Sequence[ImageInput], labels: Sequence[str], *, prompt_templates: Sequence[str], top_k: int
) -> SplitRequest[ImageClassifications]:
    """Returns the call that classifies images."""
    recipe = _requests.classify_recipe(
        labels=labels, prompt_templates=prompt_templates, top_k=top_k, include_stats=True
    )
    read, result = _responses.read_classifications, _responses.image_classifications
    return SplitRequest("Classify", images, recipe, read, result, _reads_files(images), makes_rows=False)


def compare(
    images: Sequence[ImageInput], texts: Sequence[str], *, truncate: bool
) -> SplitRequest[Comparisons]:
    """Returns the call that compares images with texts, pair by pair.

    Raises:
        ValueError: There are more of one than of the other.
    """
    texts = strings(texts, "texts")
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts; give a text for each image")
    recipe = _requests.compare_recipe(truncate=truncate, include_stats=True)
    pairs = list(zip(images, texts, strict=True))
    read, result = _responses.read_comparisons, _responses.comparisons
    return SplitRequest("Compare", pairs, recipe, read, result, _reads_files(images), makes_rows=False)


def embed_query(
    queries: Sequence[Sequence[QueryTerm]], *, truncate: bool, normalize: bool, dtype: Dtype
) -> SplitRequest[QueryEmbeddings]:
    """Returns the call that embeds composed queries."""
    recipe = _requests.embed_query_recipe(
        truncate=truncate, normalize=normalize, dtype=dtype, include_stats=True
    )
    result = functools.partial(_responses.query_embeddings, dtype=dtype)
    images = [term.image for query in queries for term in query if term.image is not None]
    return SplitRequest(
        "EmbedQuery",
        queries,
        recipe,
        _responses.read_queries,
        result,
        _reads_files(images),
        terms=sum(len(query) or 1 for query in queries),
    )


def is_about_limits(error: AlignserveError) -> bool:
    """Returns whether the request may have been refused because the server's limits have become smaller.

    gRPC itself refuses messages that are too large, and adds no reason.
    """
    if isinstance(error, ResourceExhaustedError):
        return not error.reason and error.retry_delay_seconds is None
    return error.reason == "BATCH_TOO_LARGE"


def _reads_files(images: Sequence[ImageInput]) -> bool:
    return not all(isinstance(image, bytes) for image in images)
