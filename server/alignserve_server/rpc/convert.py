"""Converts messages to plain values, and results to messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from alignserve.v1 import align_service_pb2 as pb
from numpy.typing import NDArray

from alignserve_server.api import (
    Comparisons,
    ImageInput,
    PixelArray,
    QueryTerm,
    ScoredLabel,
    ServiceInfo,
    Timings,
    TokenizedText,
    pack_signs,
    quantize_int8,
)
from alignserve_server.errors import InvalidArgument

_FORMAT = "embedding_options.format"


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
    return max([len(getattr(request, field, ())) for field in ("images", "texts", "pairs", "queries")])


def embedding_encoder(options: pb.EmbeddingOptions) -> Callable[[NDArray[np.float32]], list[pb.Embedding]]:
    """Returns the function that turns embeddings, (items, embedding_dimension), into messages of the format.

    That one raises `InvalidArgument` if the format cannot hold an embedding.

    Raises:
        InvalidArgument: The format is unknown to this server.
    """
    encode = _ENCODERS.get(options.format)
    if encode is None:
        raise InvalidArgument.at(_FORMAT, f"format {options.format} is unknown; use one of EmbeddingFormat")
    return encode


def comparisons(compared: Comparisons) -> list[pb.Comparison]:
    """Returns the comparison of each pair."""
    pairs = zip(compared.similarities.tolist(), compared.logits.tolist(), strict=True)
    return [pb.Comparison(similarity=similarity, logit=logit) for similarity, logit in pairs]


def tokenizations(tokenized: Iterable[TokenizedText]) -> list[pb.Tokenization]:
    """Returns how texts were tokenized."""
    return [
        pb.Tokenization(
            token_count=len(text.input_ids),
            truncated=text.truncated,
            unknown_token_count=text.unknown_token_count,
        )
        for text in tokenized
    ]


def add_classification_result(
    response: pb.ClassifyResponse, label_names: Sequence[str], scored: Iterable[ScoredLabel]
) -> None:
    """Adds the result of one image, best label first, in place: a large response takes long to copy."""
    add = response.results.add().classifications.add
    for each in scored:
        add(
            label=label_names[each.label_index],
            label_index=each.label_index,
            score=each.score,
            similarity=each.similarity,
            logit=each.logit,
        )


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


def _float_list(embeddings: NDArray[np.float32]) -> list[pb.Embedding]:
    # tolist first: protobuf boxes each element of an array
    return [pb.Embedding(values=values) for values in embeddings.tolist()]


def _packed_float32(embeddings: NDArray[np.float32]) -> list[pb.Embedding]:
    return [pb.Embedding(packed_float32=row.tobytes()) for row in embeddings.astype("<f4", copy=False)]


def _packed_float16(embeddings: NDArray[np.float32]) -> list[pb.Embedding]:
    with np.errstate(over="ignore", under="ignore"):
        halves = embeddings.astype("<f2")
    if not (np.isfinite(halves).all() and halves.any(axis=1).all()):  # the sum of a query with such weights
        raise InvalidArgument.at(
            _FORMAT,
            "an embedding is too large or too small for float16; send another format or other weights",
        )
    return [pb.Embedding(packed_float16=row.tobytes()) for row in halves]


def _packed_int8(embeddings: NDArray[np.float32]) -> list[pb.Embedding]:
    integers, scales = quantize_int8(embeddings)
    return [
        pb.Embedding(packed_int8=row.tobytes(), int8_scale=scale)
        for row, scale in zip(integers, scales.tolist(), strict=True)
    ]


def _packed_binary(embeddings: NDArray[np.float32]) -> list[pb.Embedding]:
    return [pb.Embedding(packed_binary=row.tobytes()) for row in pack_signs(embeddings)]


_ENCODERS: dict[int, Callable[[NDArray[np.float32]], list[pb.Embedding]]] = {
    pb.EMBEDDING_FORMAT_UNSPECIFIED: _float_list,
    pb.EMBEDDING_FORMAT_FLOAT_LIST: _float_list,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT32: _packed_float32,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT16: _packed_float16,
    pb.EMBEDDING_FORMAT_PACKED_INT8: _packed_int8,
    pb.EMBEDDING_FORMAT_PACKED_BINARY: _packed_binary,
}
