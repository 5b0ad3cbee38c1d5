"""Computes the maximum size of the response to a request, on the wire, before any work is done for it.

Each bound counts what protobuf writes: a tag for each field, varints for lengths and positions, and four
bytes for each float. It is exact except for values that may be omitted or short, such as durations, token
counts and scores of 0. No response is larger, so its memory can be reserved in advance.

Check the counts with `api.limits` first, since the cost grows with the number of labels: about 0.1 ms for a
thousand.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from alignserve.v1 import align_service_pb2 as pb
from numpy.typing import NDArray

from alignserve_server.api import ModelInfo

_TAG = 1  # bytes; every field of these messages has a number below 16
_FLOAT = 4
_LARGEST_INT = 10  # bytes of the longest varint
_DURATION = 2 * (_TAG + _LARGEST_INT)
_STATS = 4 * (_TAG + 1 + _DURATION) + 3 * (_TAG + _LARGEST_INT)
_SCORES = 3 * (_TAG + _FLOAT)  # score, similarity, logit
_COMPARISON = 2 * (_TAG + _FLOAT)  # similarity, logit
_VARINT_STEPS = (1 << 7, 1 << 14, 1 << 21, 1 << 28, 1 << 35)  # from each on, a varint has one more byte

_Sizes = NDArray[np.int64]


def embed_image_response_bytes(request: pb.EmbedImageRequest, info: ModelInfo) -> int:
    """Returns the maximum size of the serialized `EmbedImageResponse`."""
    embedding = _embedding_bytes(request.embedding_options.format, info.embedding_dimension)
    embeddings = len(request.images) * embedding
    return embeddings + _stats_bytes(request.include_stats)


def embed_text_response_bytes(request: pb.EmbedTextRequest, info: ModelInfo) -> int:
    """Returns the maximum size of the serialized `EmbedTextResponse`."""
    embedding = _embedding_bytes(request.embedding_options.format, info.embedding_dimension)
    text = embedding + _tokenization_bytes(info.max_text_tokens)
    return len(request.texts) * text + _stats_bytes(request.include_stats)


def compare_response_bytes(request: pb.CompareRequest, info: ModelInfo) -> int:
    """Returns the maximum size of the serialized `CompareResponse`."""
    pair = _field_bytes(_COMPARISON) + _tokenization_bytes(info.max_text_tokens)
    return len(request.pairs) * pair + _stats_bytes(request.include_stats)


def embed_query_response_bytes(request: pb.EmbedQueryRequest, info: ModelInfo) -> int:
    """Returns the maximum size of the serialized `EmbedQueryResponse`."""
    embedding = _embedding_bytes(request.embedding_options.format, info.embedding_dimension)
    embeddings = len(request.queries) * embedding
    return embeddings + _stats_bytes(request.include_stats)


def classify_response_bytes(request: pb.ClassifyRequest) -> int:
    """Returns the maximum size of the serialized `ClassifyResponse`.

    With `top_k`, it counts the longest labels, since the best ones are not known yet.
    """
    # A loop in Python: a function in C would hold the GIL while it encodes megabytes.
    sizes = np.array([len(label.encode()) for label in request.labels], np.int64)
    positions = np.arange(len(sizes))
    classifications = _fields_bytes(_fields_bytes(sizes) + _TAG + _varints_bytes(positions) + _SCORES)
    if 0 < request.top_k < len(sizes):
        classifications = np.partition(classifications, -request.top_k)[-request.top_k :]
    result = _field_bytes(int(classifications.sum()))
    return len(request.images) * result + _stats_bytes(request.include_stats)


def stream_response_bytes(correlation_id: str, response_bytes: int) -> int:
    """Returns the size of the `StreamInferResponse` that contains a response of the given size."""
    return _field_bytes(len(correlation_id.encode())) + _field_bytes(response_bytes)


@lru_cache(maxsize=64)
def _embedding_bytes(format_: int, dimension: int) -> int:
    match format_:
        case pb.EMBEDDING_FORMAT_PACKED_FLOAT16:
            return _field_bytes(_field_bytes(2 * dimension))
        case pb.EMBEDDING_FORMAT_PACKED_INT8:
            return _field_bytes(_field_bytes(dimension) + _TAG + _FLOAT)  # elements, scale
        case pb.EMBEDDING_FORMAT_PACKED_BINARY:
            return _field_bytes(_field_bytes(-(-dimension // 8)))
    return _field_bytes(_field_bytes(_FLOAT * dimension))


@lru_cache(maxsize=1)
def _tokenization_bytes(max_text_tokens: int) -> int:
    count = _TAG + _varint_bytes(max_text_tokens)
    return _field_bytes(count + (_TAG + 1) + count)  # tokens, truncated, unknown tokens


def _stats_bytes(include_stats: bool) -> int:
    return _field_bytes(_STATS) if include_stats else 0


def _field_bytes(size: int) -> int:
    """Returns the size of a field whose string, bytes, packed list or message has the given size."""
    return _TAG + _varint_bytes(size) + size


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def _fields_bytes(sizes: _Sizes) -> _Sizes:
    return _TAG + _varints_bytes(sizes) + sizes


def _varints_bytes(values: _Sizes) -> _Sizes:
    return 1 + np.searchsorted(_VARINT_STEPS, values, side="right")
