"""Encodes embeddings in each `EmbeddingFormat`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alignserve._fake.script import invalid
from alignserve.v1 import align_service_pb2 as pb

_FIELD = "embedding_options.format"
_INT8_MAX = 127


def check_format(options: pb.EmbeddingOptions) -> None:
    """Refuses a format that is not in the proto."""
    if options.format not in pb.EmbeddingFormat.values():
        message = f"format {options.format} is unknown; use one of EmbeddingFormat"
        raise invalid("ARGUMENT_INVALID", _FIELD, message)


def encoded(vector: NDArray[np.float32], options: pb.EmbeddingOptions) -> pb.Embedding:
    """Returns a vector in the format that the options choose."""
    match options.format:
        case pb.EMBEDDING_FORMAT_PACKED_FLOAT32:
            return pb.Embedding(packed_float32=vector.astype("<f4").tobytes())
        case pb.EMBEDDING_FORMAT_PACKED_FLOAT16:
            return pb.Embedding(packed_float16=_halves(vector).tobytes())
        case pb.EMBEDDING_FORMAT_PACKED_INT8:
            scale = np.float32(np.abs(vector).max() / _INT8_MAX)
            steps = np.clip(np.rint(vector / (scale or 1.0)), -_INT8_MAX, _INT8_MAX)
            return pb.Embedding(packed_int8=steps.astype(np.int8).tobytes(), int8_scale=float(scale))
        case pb.EMBEDDING_FORMAT_PACKED_BINARY:
            return pb.Embedding(packed_binary=np.packbits(vector > 0).tobytes())
        case _:
            return pb.Embedding(values=vector.tolist())


def _halves(vector: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore", under="ignore"):
        halves: NDArray[np.float16] = vector.astype("<f2")
    if not np.isfinite(halves).all() or halves.any() != vector.any():
        message = "an embedding is too large or too small for float16; send another format or other weights"
        raise invalid("ARGUMENT_INVALID", _FIELD, message)
    return halves
