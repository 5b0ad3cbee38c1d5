"""Embeddings as JSON, a row at a time, so that large answers are written in small steps."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

Row = NDArray[np.float32]  # (embedding_dimension,)

_FLOAT_BYTES = 12  # a float32 in shortest form and its comma: 11 on average for normalized embeddings


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """How an embedding is written."""

    write: Callable[[Row], bytes]  # returns JSON
    row_bytes: Callable[[int], int]  # about how much JSON an embedding of this dimension takes


def _floats(row: Row) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def _base64(row: Row) -> bytes:
    return b'"%s"' % base64.b64encode(row.astype("<f4", copy=False).tobytes())


FLOATS = VectorFormat(_floats, lambda dimension: _FLOAT_BYTES * dimension)
BASE64 = VectorFormat(_base64, lambda dimension: (4 * dimension + 2) // 3 * 4)  # of little-endian float32


def json_list(values: Iterable[bytes]) -> Iterator[bytes]:
    """Yields a JSON list of values that are JSON already, a value at a time."""
    separator = b"["
    for value in values:
        yield separator + value
        separator = b","
    yield b"[]" if separator == b"[" else b"]"


def json_object(members: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[bytes]:
    """Yields a JSON object from names and values that are JSON already, in parts."""
    separator = b"{"
    for name, value in members:
        yield separator + orjson.dumps(name) + b":"
        yield from value
        separator = b","
    yield b"{}" if separator == b"{" else b"}"


def json_value(value: object) -> list[bytes]:
    """Returns a small value as JSON, in one part."""
    return [orjson.dumps(value)]
