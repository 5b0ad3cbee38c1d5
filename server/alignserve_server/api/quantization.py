"""Smaller encodings of embeddings, which doors offer in their own formats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LARGEST = 127  # not -128, so that negating an embedding negates its bytes


def quantize_int8(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Scales each embedding so that its largest absolute element becomes 127, and rounds to integers.

    Args:
        embeddings: (items, embedding_dimension).

    Returns:
        The integers, of the same shape, from -127 to 127; halves are rounded to even ones. And the scales,
        (items,): integers times scale restore the elements. A zero vector has the scale 0.
    """
    # In float64: in float32, the largest element could be rounded to 126, and the smallest have a scale of 0.
    scales = np.abs(embeddings).max(axis=1).astype(np.float64) / _LARGEST
    divisors = np.where(scales > 0, scales, 1.0)
    integers = np.rint(embeddings / divisors[:, np.newaxis]).astype(np.int8)
    return integers, scales.astype(np.float32)


def pack_signs(embeddings: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Packs the signs of each embedding into bits, eight a byte: 1 if an element is above 0.

    Args:
        embeddings: (items, embedding_dimension).

    Returns:
        (items, bytes). The first element is the highest bit of the first byte; unused bits of the last byte
        are 0.
    """
    return np.packbits(embeddings > 0, axis=1)
