"""Converts messages to plain values, and results to messages."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from alignserve.v1 import align_service_pb2 as pb

from alignserve_server.api import (
    Comparisons,
    ImageInput,
    PixelArray,
    QueryTerm,
    ServiceInfo,
    Timings,
)

_ITEMS = ("images", "texts", "pairs", "queries")  # the fields with items; a request has one of them


def image_inputs(images: Iterable[pb.Image]) -> list[ImageInput]:
    """Returns the images of a request. Call it only once: each access to their bytes copies them."""
    return list(map(image_input, images))


def image_input(image: pb.Image) -> ImageInput:
    """Returns an image's file, which is empty if the image has no source, or its pixels."""
    if image.WhichOneof("source") != "pixels":
        return image.content
    pixels = image.pixels
    return PixelArray(pixels.height, pixels.width, pixels.data)


def query_terms(queries: Iterable[pb.ComposedQuery]) -> list[list[QueryTerm]]:
    """Returns the terms of each query."""
    return [list(map(_query_term, query.terms)) for query in queries]


def item_count(request: Any) -> int:
    """Returns the number of images, texts, pairs or queries in any request; labels and terms do not count."""
    kind: Any = type(request)
    field = _field_of_items(kind)
    return 0 if field is None else len(getattr(request, field))


@lru_cache(maxsize=64)  # the requests of all methods
def _field_of_items(kind: Any) -> str | None:
    # not by asking each message: for a field that it does not have, that takes microseconds
    fields = kind.DESCRIPTOR.fields_by_name if hasattr(kind, "DESCRIPTOR") else ()
    return next((name for name in _ITEMS if name in fields), None)


def comparisons(compared: Comparisons) -> list[pb.Comparison]:
    """Returns the comparison of each pair."""
    pairs = zip(compared.similarities.tolist(), compared.logits.tolist(), strict=True)
    return [pb.Comparison(similarity=similarity, logit=logit) for similarity, logit in pairs]


def inference_stats(timings: Timings, start: float, cached_label_count: int = 0) -> pb.InferenceStats:
    """Returns how a call that began at `start`, by `time.perf_counter`, spent its time."""
    stats = pb.InferenceStats(
        batch_size=timings.batch_size,
        cached_label_count=cached_label_count,
        cached_item_count=timings.cached_item_count,
    )
    stats.preprocess_duration.FromNanoseconds(round(timings.preprocess_seconds * 1e9))
    stats.queue_duration.FromNanoseconds(round(timings.queue_seconds * 1e9))
    stats.compute_duration.FromNanoseconds(round(timings.compute_seconds * 1e9))
    stats.total_duration.FromNanoseconds(round((time.perf_counter() - start) * 1e9))
    return stats


def model_info(info: ServiceInfo) -> pb.GetModelInfoResponse:
    """Returns the model and the limits as a message, whose fields have the same names."""
    return pb.GetModelInfoResponse(
        **asdict(info.model), **asdict(info.limits), server_version=info.server_version
    )


def _query_term(term: pb.QueryTerm) -> QueryTerm:
    weight = term.weight if term.HasField("weight") else 1.0
    match term.WhichOneof("input"):
        case "image":
            return QueryTerm(image_input(term.image), weight)
        case "text":
            return QueryTerm(term.text, weight)
    return QueryTerm(None, weight)
