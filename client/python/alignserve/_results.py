"""What calls return, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve.errors import AlignserveError

EmbeddingArray: TypeAlias = NDArray[Any]  # Any: float32, float16, int8 or uint8 (binary), as asked for


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model being served and the limits that apply to requests.

    `fingerprint` is a digest of weights, preprocessing, tokenizer, runtime and data type: embeddings are
    comparable only within one, so store it with them. `temperature` turns similarities into logits.
    `min_cosine_similarity` is the lowest cosine similarity to transformers in single precision, measured when
    the model was loaded.
    """

    model_id: str
    model_revision: str
    fingerprint: str
    runtime: str
    dtype: str
    device: str
    embedding_dimension: int
    temperature: float
    max_text_tokens: int
    max_client_batch_size: int
    max_labels: int
    max_prompt_templates: int
    max_image_bytes: int
    max_image_pixels: int
    max_text_bytes: int
    max_request_bytes: int
    max_stream_in_flight: int
    image_formats: tuple[str, ...]
    server_version: str
    min_cosine_similarity: float
    max_response_bytes: int


@dataclass(frozen=True, slots=True)
class Classification:
    """A candidate label and how well it matches an image.

    Attributes:
        label: The label, as given.
        label_index: Its position among the labels given.
        score: Probability among the labels given, from 0 to 1.
        similarity: Cosine similarity of image and label, from -1 to 1.
        logit: `similarity` divided by the model's temperature.
    """

    label: str
    label_index: int
    score: float
    similarity: float
    logit: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How well a text matches an image.

    Attributes:
        similarity: Cosine similarity of image and text, from -1 to 1.
        logit: `similarity` divided by the model's temperature.
    """

    similarity: float
    logit: float


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How a text was tokenized.

    Attributes:
        token_count: Tokens that the model read, including special ones.
        truncated: Whether the text was too long and was truncated.
        unknown_token_count: How many of these tokens replace words or characters missing from the model's
            vocabulary. They are all the same to the model, so an embedding with many of them means little.
    """

    token_count: int
    truncated: bool
    unknown_token_count: int = 0


@dataclass(frozen=True, slots=True)
class InferenceStats:
    """Where the time of one request went, in the server.

    Attributes:
        preprocess_seconds: Decoding, resizing and tokenizing.
        queue_seconds: Longest time an item waited for a batch.
        compute_seconds: Longest time an item spent in the model.
        total_seconds: Time from the request's arrival to its answer.
        batch_size: Size of the largest batch that served the request.
        cached_label_count: Labels served from the cache, for a classification.
        cached_item_count: Images or texts served from the cache. If all were, `queue_seconds`,
            `compute_seconds` and `batch_size` are 0.
    """

    preprocess_seconds: float
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    batch_size: int
    cached_label_count: int
    cached_item_count: int = 0


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single truth value to compare by
class ImageEmbeddings:
    """Embeddings of images, with stats and errors.

    Attributes:
        embeddings: (images, embedding_dimension), in the order given; (images, embedding_dimension / 8),
            rounded up, for `binary`. The row of an image that failed is NaN, or 0 for `int8` and `binary`.
        stats: One per request; a long list is split into several.
        errors: Why images failed, by position; empty unless `on_error="return"`.
        int8_scales: (images,), for `int8` only: a row times its scale restores the embedding. 0 for an image
            that failed.
    """

    embeddings: EmbeddingArray
    stats: tuple[InferenceStats, ...]
    errors: Mapping[int, AlignserveError] = field(default_factory=dict)
    int8_scales: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TextEmbeddings:
    """Embeddings of texts, with token counts, stats and errors.

    Attributes:
        embeddings: (texts, embedding_dimension), in the order given; see `ImageEmbeddings` for texts that
            failed and for `binary`.
        tokenizations: One per text; zero tokens for a text that failed.
        stats: One per request; a long list is split into several.
        errors: Why texts failed, by position; empty unless `on_error="return"`.
        int8_scales: As for `ImageEmbeddings`.
    """

    embeddings: EmbeddingArray
    tokenizations: tuple[Tokenization, ...]
    stats: tuple[InferenceStats, ...]
    errors: Mapping[int, AlignserveError] = field(default_factory=dict)
    int8_scales: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class QueryEmbeddings:
    """Embeddings of composed queries, with stats and errors.

    Attributes:
        embeddings: (queries, embedding_dimension), in the order given; see `ImageEmbeddings` for queries that
            failed.
        stats: One per request; a long list is split into several.
        errors: Why queries failed, by position; empty unless `on_error="return"`.
        int8_scales: As for `ImageEmbeddings`.
    """

    embeddings: EmbeddingArray
    stats: tuple[InferenceStats, ...]
    errors: Mapping[int, AlignserveError] = field(default_factory=dict)
    int8_scales: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Comparisons of images with texts, with token counts, stats and errors.

    Attributes:
        comparisons: One per pair, in the order given; NaN for a pair that failed.
        tokenizations: How the text of each pair was tokenized; zero tokens for a pair that failed.
        stats: One per request; a long list is split into several.
        errors: Why pairs failed, by position; empty unless `on_error="return"`.
    """

    comparisons: tuple[Comparison, ...]
    tokenizations: tuple[Tokenization, ...]
    stats: tuple[InferenceStats, ...]
    errors: Mapping[int, AlignserveError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageClassifications:
    """Classifications of images, with stats and errors.

    Attributes:
        classifications: For each image, its labels, best first; empty for an image that failed.
        stats: One per request; a long list is split into several.
        errors: Why images failed, by position; empty unless `on_error="return"`.
    """

    classifications: tuple[list[Classification], ...]
    stats: tuple[InferenceStats, ...]
    errors: Mapping[int, AlignserveError] = field(default_factory=dict)
