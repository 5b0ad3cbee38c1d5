"""Response messages, to plain values and arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alignserve._items import Item, StreamResult
from alignserve._results import (
    Classification,
    EmbeddingArray,
    ImageClassifications,
    ImageEmbeddings,
    InferenceStats,
    ModelInfo,
    TextEmbeddings,
    Tokenization,
)
from alignserve.errors import AlignserveError, error_from_status
from alignserve.v1 import align_service_pb2 as pb

_UNKNOWN_RESULT = "the server sent a result of an unknown kind; update alignserve"


def model_info(response: pb.GetModelInfoResponse) -> ModelInfo:
    """Returns the model and its limits."""
    return ModelInfo(
        model_id=response.model_id,
        model_revision=response.model_revision,
        fingerprint=response.fingerprint,
        runtime=response.runtime,
        dtype=response.dtype,
        device=response.device,
        embedding_dimension=response.embedding_dimension,
        temperature=response.temperature,
        max_text_tokens=response.max_text_tokens,
        max_client_batch_size=response.max_client_batch_size,
        max_labels=response.max_labels,
        max_prompt_templates=response.max_prompt_templates,
        max_image_bytes=response.max_image_bytes,
        max_image_pixels=response.max_image_pixels,
        max_text_bytes=response.max_text_bytes,
        max_request_bytes=response.max_request_bytes,
        max_stream_in_flight=response.max_stream_in_flight,
        image_formats=tuple(response.image_formats),
        server_version=response.server_version,
        min_cosine=response.min_cosine,
        max_response_bytes=response.max_response_bytes,
    )


def image_embeddings(responses: Sequence[pb.EmbedImageResponse]) -> ImageEmbeddings:
    """Joins the responses of one call, at least one."""
    return ImageEmbeddings(
        embeddings=embedding_rows([e for response in responses for e in response.embeddings]),
        stats=_stats(responses),
    )


def text_embeddings(responses: Sequence[pb.EmbedTextResponse]) -> TextEmbeddings:
    """Joins the responses of one call, at least one."""
    return TextEmbeddings(
        embeddings=embedding_rows([e for response in responses for e in response.embeddings]),
        tokenizations=tuple(_tokenization(t) for response in responses for t in response.tokenizations),
        stats=_stats(responses),
    )


def image_classifications(responses: Sequence[pb.ClassifyResponse]) -> ImageClassifications:
    """Joins the responses of one call."""
    return ImageClassifications(
        classifications=tuple(_classifications(r) for response in responses for r in response.results),
        stats=_stats(responses),
    )


def embedding_rows(embeddings: Sequence[pb.Embedding]) -> EmbeddingArray:
    """Returns packed embeddings, at least one and all of one format, as (embeddings, dimension)."""
    if embeddings[0].packed_float16:
        packed, dtype = [embedding.packed_float16 for embedding in embeddings], "<f2"
    else:
        packed, dtype = [embedding.packed_float32 for embedding in embeddings], "<f4"
    # A bytearray makes the array writable without a second copy.
    joined = np.frombuffer(bytearray().join(packed), dtype)
    native: EmbeddingArray = joined.astype(joined.dtype.newbyteorder("="), copy=False)
    return native.reshape(len(embeddings), -1)


def item_failure(response: pb.StreamInferResponse) -> AlignserveError | None:
    """Returns why an item of a stream failed, or `None` if it did not."""
    return error_from_status(response.error) if response.WhichOneof("result") == "error" else None


def item_result(item: Item, response: pb.StreamInferResponse) -> StreamResult:
    """Returns what became of an item of a stream."""
    kind = response.WhichOneof("result")
    if kind == "embed_image":
        return StreamResult(item, embedding_rows(response.embed_image.embeddings)[0])
    if kind == "embed_text":
        return StreamResult(
            item,
            embedding_rows(response.embed_text.embeddings)[0],
            tokenization=_tokenization(response.embed_text.tokenizations[0]),
        )
    if kind == "classify":
        return StreamResult(item, _classifications(response.classify.results[0]))
    return StreamResult(item, error=item_failure(response) or AlignserveError(_UNKNOWN_RESULT))


def _classifications(result: pb.ClassificationResult) -> list[Classification]:
    return [
        Classification(
            label=found.label,
            label_index=found.label_index,
            score=found.score,
            similarity=found.similarity,
            logit=found.logit,
        )
        for found in result.classifications
    ]


def _tokenization(tokenization: pb.Tokenization) -> Tokenization:
    return Tokenization(tokenization.token_count, tokenization.truncated, tokenization.unknown_token_count)


def _stats(responses: Iterable[Any]) -> tuple[InferenceStats, ...]:
    # Any: the three responses share the field `stats` and no type that has it.
    return tuple(
        InferenceStats(
            preprocess_seconds=response.stats.preprocess_duration.ToNanoseconds() / 1e9,
            queue_seconds=response.stats.queue_duration.ToNanoseconds() / 1e9,
            compute_seconds=response.stats.compute_duration.ToNanoseconds() / 1e9,
            total_seconds=response.stats.total_duration.ToNanoseconds() / 1e9,
            batch_size=response.stats.batch_size,
            cached_label_count=response.stats.cached_label_count,
        )
        for response in responses
        if response.HasField("stats")
    )
