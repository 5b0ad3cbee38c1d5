"""Converts response messages to plain values and arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from alignserve._items import Dtype, Item, StreamResult, Value
from alignserve._results import (
    Classification,
    Comparison,
    Comparisons,
    EmbeddingArray,
    ImageClassifications,
    ImageEmbeddings,
    InferenceStats,
    ModelInfo,
    QueryEmbeddings,
    TextEmbeddings,
    Tokenization,
)
from alignserve.errors import AlignserveError, InternalError, error_from_status
from alignserve.v1 import align_service_pb2 as pb

_UNKNOWN_RESULT = "the server sent an unknown kind of result; update alignserve"
_PACKED = (
    ("packed_float32", "<f4"),
    ("packed_float16", "<f2"),
    ("packed_int8", "i1"),
    ("packed_binary", "u1"),
)
_ROW_TYPES = {"float32": "f4", "float16": "f2", "int8": "i1", "binary": "u1"}


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
        min_cosine_similarity=response.min_cosine_similarity,
        max_response_bytes=response.max_response_bytes,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """One response, item by item.

    Attributes:
        values: The embedding of each, (embedding_dimension,), its classifications, or its comparison.
        tokenizations: How each was tokenized, for texts and pairs.
        stats: Of the request, if the server sent them.
        scales: Of each embedding, for int8.
    """

    values: Iterable[Value]
    tokenizations: Sequence[Tokenization]
    stats: InferenceStats | None
    scales: Sequence[float] = ()


@dataclass(slots=True)
class Outcome:
    """The results of one call's items, by their positions in the caller's list."""

    count: int
    values: dict[int, Value] = field(default_factory=dict)
    tokenizations: dict[int, Tokenization] = field(default_factory=dict)
    errors: dict[int, AlignserveError] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)
    _stats: list[tuple[int, InferenceStats]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Returns how many items have a result or an error."""
        return len(self.values) + len(self.errors)

    @property
    def stats(self) -> tuple[InferenceStats, ...]:
        """Returns the stats of the requests, in the order of their first items."""
        return tuple(stats for _, stats in sorted(self._stats, key=lambda numbered: numbered[0]))

    def enter(self, positions: Sequence[int], answer: Answer) -> None:
        """Records a response for the items at these positions.

        Raises:
            InternalError: It does not match the items, or comes from a different model than before.
        """
        values = list(answer.values)
        if len(values) != len(positions):
            raise _misfit(f"the server sent {len(values)} results for {len(positions)} items")
        self._check_width(values[0])
        self.values.update(zip(positions, values, strict=True))
        self.tokenizations.update(zip(positions, answer.tokenizations, strict=False))  # texts only
        self.scales.update(zip(positions, answer.scales, strict=False))  # int8 only
        if answer.stats is not None:
            self._stats.append((positions[0], answer.stats))

    def _check_width(self, value: Value) -> None:
        first = next(iter(self.values.values()), value)
        if isinstance(value, np.ndarray) and isinstance(first, np.ndarray) and value.size != first.size:
            raise _misfit(
                f"embeddings now have {value.size} numbers and had {first.size} before; "
                "the server's model has changed, so start again"
            )

    def fail_rest(self, error: AlignserveError) -> None:
        """Records an error for each item that has no result or error yet."""
        for position in range(self.count):
            if position not in self.values:
                self.errors.setdefault(position, error)


def read_images(response: pb.EmbedImageResponse) -> Answer:
    """Splits a response into items."""
    return Answer(embedding_rows(response.embeddings), (), _stats(response), _scales(response.embeddings))


def read_texts(response: pb.EmbedTextResponse) -> Answer:
    """Splits a response into items."""
    tokenizations = [_tokenization(each) for each in response.tokenizations]
    rows = embedding_rows(response.embeddings)
    return Answer(rows, tokenizations, _stats(response), _scales(response.embeddings))


def read_queries(response: pb.EmbedQueryResponse) -> Answer:
    """Splits a response into items."""
    return Answer(embedding_rows(response.embeddings), (), _stats(response), _scales(response.embeddings))


def read_comparisons(response: pb.CompareResponse) -> Answer:
    """Splits a response into items."""
    tokenizations = [_tokenization(each) for each in response.tokenizations]
    return Answer([_comparison(each) for each in response.comparisons], tokenizations, _stats(response))


def read_classifications(response: pb.ClassifyResponse) -> Answer:
    """Splits a response into items."""
    return Answer([_classifications(each) for each in response.results], (), _stats(response))


def image_embeddings(outcome: Outcome, dimension: int, *, dtype: Dtype) -> ImageEmbeddings:
    """Builds the result of a call."""
    rows = _rows(outcome, dimension, dtype)
    return ImageEmbeddings(rows, outcome.stats, outcome.errors, _scale_column(outcome, dtype))


def text_embeddings(outcome: Outcome, dimension: int, *, dtype: Dtype) -> TextEmbeddings:
    """Builds the result of a call."""
    rows = _rows(outcome, dimension, dtype)
    scales = _scale_column(outcome, dtype)
    return TextEmbeddings(rows, _tokenizations(outcome), outcome.stats, outcome.errors, scales)


def query_embeddings(outcome: Outcome, dimension: int, *, dtype: Dtype) -> QueryEmbeddings:
    """Builds the result of a call."""
    rows = _rows(outcome, dimension, dtype)
    return QueryEmbeddings(rows, outcome.stats, outcome.errors, _scale_column(outcome, dtype))


def comparisons(outcome: Outcome, _: int) -> Comparisons:
    """Builds the result of a call."""
    failed = Comparison(math.nan, math.nan)
    found = cast("Mapping[int, Comparison]", outcome.values)
    ordered = tuple(found.get(position, failed) for position in range(outcome.count))
    return Comparisons(ordered, _tokenizations(outcome), outcome.stats, outcome.errors)


def image_classifications(outcome: Outcome, _: int) -> ImageClassifications:
    """Builds the result of a call."""
    found: Any = (outcome.values.get(position, []) for position in range(outcome.count))
    return ImageClassifications(tuple(found), outcome.stats, outcome.errors)


def in_place(values: Iterable[Any], errors: Mapping[int, AlignserveError]) -> list[Any]:
    """Returns the value or the error of each item. Any: the call's declared result for one item."""
    return [errors.get(position, value) for position, value in enumerate(values)]


def missing_rows(count: int, dimension: int, *, dtype: Dtype) -> EmbeddingArray:
    """Returns rows for embeddings that failed: NaN, or 0 where the type has no NaN."""
    row_type = np.dtype(_ROW_TYPES[dtype])
    width = math.ceil(dimension / 8) if dtype == "binary" else dimension
    return np.full((count, width), np.nan if row_type.kind == "f" else 0, row_type)


def embedding_rows(embeddings: Sequence[pb.Embedding]) -> EmbeddingArray:
    """Returns packed embeddings, at least one and all of one format, as (embeddings, dimension).

    Raises:
        InternalError: There are none, or their sizes differ.
    """
    if not embeddings:
        raise _misfit("the server sent no embedding")
    field_name, dtype = next(
        (each for each in _PACKED if getattr(embeddings[0], each[0])), ("packed_float32", "<f4")
    )
    packed = [getattr(embedding, field_name) for embedding in embeddings]
    sizes = set(map(len, packed))
    if len(sizes) > 1 or min(sizes) == 0 or min(sizes) % np.dtype(dtype).itemsize:
        raise _misfit(f"the server sent embeddings of {', '.join(map(str, sorted(sizes)))} bytes")
    # A bytearray makes the array writable without a second copy.
    joined = np.frombuffer(bytearray().join(packed), dtype)
    native: EmbeddingArray = joined.astype(joined.dtype.newbyteorder("="), copy=False)
    return native.reshape(len(embeddings), -1)


def item_failure(response: pb.StreamInferResponse) -> AlignserveError | None:
    """Returns why an item of a stream failed, or `None` if it did not."""
    return error_from_status(response.error) if response.WhichOneof("result") == "error" else None


def item_result(item: Item, response: pb.StreamInferResponse) -> StreamResult:
    """Returns the result of a stream item."""
    kind = response.WhichOneof("result")
    if kind is None or kind not in _READERS:
        return StreamResult(item, error=item_failure(response) or AlignserveError(_UNKNOWN_RESULT))
    answer = _READERS[kind](getattr(response, kind))
    return StreamResult(
        item,
        next(iter(answer.values)),
        tokenization=next(iter(answer.tokenizations), None),
        int8_scale=next(iter(answer.scales), None),
    )


def _misfit(message: str) -> InternalError:
    return InternalError(message, grpc.StatusCode.INTERNAL)


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


def _comparison(comparison: pb.Comparison) -> Comparison:
    return Comparison(comparison.similarity, comparison.logit)


def _tokenization(tokenization: pb.Tokenization) -> Tokenization:
    return Tokenization(tokenization.token_count, tokenization.truncated, tokenization.unknown_token_count)


def _rows(outcome: Outcome, dimension: int, dtype: Dtype) -> EmbeddingArray:
    found = cast("Mapping[int, EmbeddingArray]", outcome.values)
    if found:
        dimension = next(iter(found.values())).size * (8 if dtype == "binary" else 1)
    rows = missing_rows(outcome.count, dimension, dtype=dtype)
    for position, row in found.items():
        rows[position] = row
    return rows


def _scales(embeddings: Sequence[pb.Embedding]) -> Sequence[float]:
    return [each.int8_scale for each in embeddings] if embeddings[0].packed_int8 else ()


def _scale_column(outcome: Outcome, dtype: Dtype) -> NDArray[np.float32] | None:
    if dtype != "int8":
        return None
    return np.array([outcome.scales.get(each, 0.0) for each in range(outcome.count)], np.float32)


def _tokenizations(outcome: Outcome) -> tuple[Tokenization, ...]:
    unread = _tokenization(pb.Tokenization())
    return tuple(outcome.tokenizations.get(each, unread) for each in range(outcome.count))


def _stats(response: Any) -> InferenceStats | None:
    # Any: all responses share the field `stats`, but no type that declares it.
    if not response.HasField("stats"):
        return None
    stats = response.stats
    return InferenceStats(
        preprocess_seconds=stats.preprocess_duration.ToNanoseconds() / 1e9,
        queue_seconds=stats.queue_duration.ToNanoseconds() / 1e9,
        compute_seconds=stats.compute_duration.ToNanoseconds() / 1e9,
        total_seconds=stats.total_duration.ToNanoseconds() / 1e9,
        batch_size=stats.batch_size,
        cached_label_count=stats.cached_label_count,
        cached_item_count=stats.cached_item_count,
    )


# By field of a stream's response. Any: each reader takes the message of its field.
_READERS: dict[str, Callable[[Any], Answer]] = {
    "embed_image": read_images,
    "embed_text": read_texts,
    "classify": read_classifications,
    "compare": read_comparisons,
    "embed_query": read_queries,
}
