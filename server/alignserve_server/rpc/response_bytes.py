"""Writes large responses in protobuf's wire format, part by part.

As messages, embeddings would be copied three times: into each `Embedding`, into the response, and out of it.
For sixty-four texts that takes twenty times as long as this. A message with megabytes of labels would be
serialized in one call, which holds the GIL for about 20 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from alignserve.v1 import align_service_pb2 as pb
from numpy.typing import NDArray

from alignserve_server.api import ScoredLabel, TokenizedText, pack_signs, quantize_int8
from alignserve_server.errors import InvalidArgument

_FORMAT = "embedding_options.format"
_LENGTH, _FOUR_BYTES = 2, 5  # wire types

# The same in all three responses with embeddings.
_EMBEDDINGS = pb.EmbedTextResponse.EMBEDDINGS_FIELD_NUMBER

_LABELS_AT_ONCE = 8  # more of the longest ones, 32 KiB each, take longer together than one by one

EncodeEmbeddings = Callable[[NDArray[np.float32]], bytes]
"""Turns embeddings, (items, embedding_dimension), into the field `embeddings` of a response."""


def embedding_encoder(options: pb.EmbeddingOptions) -> EncodeEmbeddings:
    """Returns the function that writes embeddings in the format.

    That one raises `InvalidArgument` if the format cannot hold an embedding.

    Raises:
        InvalidArgument: The format is unknown to this server.
    """
    encode = _ENCODERS.get(options.format)
    if encode is None:
        raise InvalidArgument.at(_FORMAT, f"format {options.format} is unknown; use one of EmbeddingFormat")
    return encode


def tokenizations(tokenized: Iterable[TokenizedText]) -> bytes:
    """Returns the field `tokenizations` of a response with texts: how each was tokenized."""
    return b"".join(
        [_tokenization(len(text.input_ids), text.truncated, text.unknown_token_count) for text in tokenized]
    )


def classification_result(label_names: Sequence[str], scored: Sequence[ScoredLabel]) -> bytes:
    """Returns an element of the field `results` of a classification: the scores of one image, best first."""
    parts = []
    for start in range(0, len(scored), _LABELS_AT_ONCE):
        part = pb.ClassificationResult()  # the bytes of a message are those of its parts, in order
        for each in scored[start : start + _LABELS_AT_ONCE]:
            part.classifications.add(
                label=label_names[each.label_index],
                label_index=each.label_index,
                score=each.score,
                similarity=each.similarity,
                logit=each.logit,
            )
        parts.append(part.SerializeToString())
    return b"".join((_header(pb.ClassifyResponse.RESULTS_FIELD_NUMBER, sum(map(len, parts))), *parts))


def field(number: int, content: bytes) -> bytes:
    """Returns a field whose string, bytes or message has this content."""
    return _header(number, len(content)) + content


@lru_cache(maxsize=4096)
def _tokenization(token_count: int, truncated: bool, unknown_token_count: int) -> bytes:
    message = pb.Tokenization(
        token_count=token_count, truncated=truncated, unknown_token_count=unknown_token_count
    )
    return field(pb.EmbedTextResponse.TOKENIZATIONS_FIELD_NUMBER, message.SerializeToString())


def _rows(number: int, rows: NDArray[np.generic], tails: NDArray[np.uint8] | None = None) -> bytes:
    """Returns embeddings of which each has the bytes of a row as a field, followed by the fields of its tail.

    Args:
        number: Number of the field in `Embedding`.
        rows: The elements, (items, elements), in little-endian order.
        tails: Serialized fields, (items, bytes).
    """
    contents = np.ascontiguousarray(rows).view(np.uint8)
    parts = [contents] if tails is None else [contents, tails]
    inner = _header(number, contents.shape[1])
    header = _header(_EMBEDDINGS, len(inner) + sum([part.shape[1] for part in parts])) + inner
    if len(rows) == 1:
        return b"".join([header, *map(np.ndarray.tobytes, parts)])  # a fifth of the time
    written = np.empty((len(rows), len(header) + sum([part.shape[1] for part in parts])), np.uint8)
    written[:, : len(header)] = np.frombuffer(header, np.uint8)
    position = len(header)
    for part in parts:
        written[:, position : position + part.shape[1]] = part
        position += part.shape[1]
    return written.tobytes()


def _float_list(embeddings: NDArray[np.float32]) -> bytes:
    # Numbers of a repeated field are packed, so they have the same bytes as `packed_float32`.
    return _rows(pb.Embedding.VALUES_FIELD_NUMBER, embeddings.astype("<f4", copy=False))


def _packed_float32(embeddings: NDArray[np.float32]) -> bytes:
    return _rows(pb.Embedding.PACKED_FLOAT32_FIELD_NUMBER, embeddings.astype("<f4", copy=False))


def _packed_float16(embeddings: NDArray[np.float32]) -> bytes:
    with np.errstate(over="ignore", under="ignore"):
        halves = embeddings.astype("<f2")
    if not (np.isfinite(halves).all() and halves.any(axis=1).all()):  # the sum of a query with such weights
        raise InvalidArgument.at(
            _FORMAT,
            "an embedding is too large or too small for float16; send another format or other weights",
        )
    return _rows(pb.Embedding.PACKED_FLOAT16_FIELD_NUMBER, halves)


def _packed_int8(embeddings: NDArray[np.float32]) -> bytes:
    integers, scales = quantize_int8(embeddings)
    tag = _tag(pb.Embedding.INT8_SCALE_FIELD_NUMBER, _FOUR_BYTES)
    tails = np.empty((len(scales), len(tag) + 4), np.uint8)
    tails[:, : len(tag)] = np.frombuffer(tag, np.uint8)
    tails[:, len(tag) :] = scales.astype("<f4").reshape(-1, 1).view(np.uint8)
    return _rows(pb.Embedding.PACKED_INT8_FIELD_NUMBER, integers, tails)


def _packed_binary(embeddings: NDArray[np.float32]) -> bytes:
    return _rows(pb.Embedding.PACKED_BINARY_FIELD_NUMBER, pack_signs(embeddings))


_ENCODERS: dict[int, EncodeEmbeddings] = {
    pb.EMBEDDING_FORMAT_UNSPECIFIED: _float_list,
    pb.EMBEDDING_FORMAT_FLOAT_LIST: _float_list,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT32: _packed_float32,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT16: _packed_float16,
    pb.EMBEDDING_FORMAT_PACKED_INT8: _packed_int8,
    pb.EMBEDDING_FORMAT_PACKED_BINARY: _packed_binary,
}


@lru_cache(maxsize=256)
def _header(number: int, size: int) -> bytes:
    return _tag(number, _LENGTH) + _varint(size)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
