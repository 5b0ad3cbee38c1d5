"""Converts messages to plain values, and results to messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from alignserve.v1 import align_service_pb2 as pb
from numpy.typing import NDArray

from alignserve_server.api import ScoredLabel, ServiceInfo, Timings, TokenizedText
from alignserve_server.errors import InvalidArgument


def image_contents(images: Sequence[pb.Image]) -> list[bytes]:
    """Returns the encoded images of a request. Call it only once: each access to the field copies it."""
    return [image.content for image in images]


def item_count(request: Any) -> int:
    """Returns the number of images or texts in any request; labels do not count."""
    return len(getattr(request, "images", ()) or getattr(request, "texts", ()))


def embedding_encoder(options: pb.EmbeddingOptions) -> Callable[[NDArray[np.float32]], list[pb.Embedding]]:
    """Returns the function that turns embeddings, (items, embedding_dimension), into messages of the format.

    Raises:
        InvalidArgument: The format is unknown to this server.
    """
    encode = _ENCODERS.get(options.format)
    if encode is None:
        raise InvalidArgument.at(
            "embedding_options.format", f"format {options.format} is unknown; use one of EmbeddingFormat"
        )
    return lambda embeddings: list(map(encode, embeddings))


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


def _float_list(embedding: NDArray[np.float32]) -> pb.Embedding:
    return pb.Embedding(values=embedding.tolist())  # tolist first: protobuf boxes each element of an array


def _packed_float32(embedding: NDArray[np.float32]) -> pb.Embedding:
    return pb.Embedding(packed_float32=embedding.astype("<f4", copy=False).tobytes())


def _packed_float16(embedding: NDArray[np.float32]) -> pb.Embedding:
    return pb.Embedding(packed_float16=embedding.astype("<f2").tobytes())


_ENCODERS: dict[int, Callable[[NDArray[np.float32]], pb.Embedding]] = {
    pb.EMBEDDING_FORMAT_UNSPECIFIED: _float_list,
    pb.EMBEDDING_FORMAT_FLOAT_LIST: _float_list,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT32: _packed_float32,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT16: _packed_float16,
}
