"""Image-text retrieval: the similarity of pairs, and queries composed of images and texts.

Composed queries are those of ALIGN (Jia et al., 2021, https://arxiv.org/abs/2102.05918, "Image retrieval with
image±text queries"): the text's embedding is added to, or subtracted from, that of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignserve_server.model.encoder import Embeddings, has_direction, l2_normalize

# A sum this short, relative to the weights, is what rounding has left of terms that cancel out: float32 has
# seven digits.
_MIN_RELATIVE_LENGTH = 1e-5


class Comparisons(NamedTuple):
    """How well the text of each pair matches the image."""

    similarities: NDArray[np.float32]  # (pairs,), cosines
    logits: NDArray[np.float32]  # (pairs,), similarity / temperature


def compare_pairs(images: Embeddings, texts: Embeddings, temperature: float) -> Comparisons:
    """Compares each image with the text in the same row; neither needs to be normalized."""
    # In float64, then rounded, as in `zero_shot`.
    rows = (l2_normalize(images).astype(np.float64), l2_normalize(texts).astype(np.float64))
    cosines = np.einsum("ij,ij->i", *rows).clip(-1.0, 1.0).astype(np.float32)
    return Comparisons(cosines, (cosines.astype(np.float64) / temperature).astype(np.float32))


def compose_queries(terms: Embeddings, weights: Sequence[Sequence[float]], *, normalize: bool) -> Embeddings:
    """Adds up the terms of each query.

    Args:
        terms: The embeddings of all terms, query by query; need not be normalized.
        weights: Of each query, the factors of its terms; there is at least one, and none is 0.
        normalize: Whether to scale the sums to length 1.

    Returns:
        (queries, embedding_dimension); NaN for a query whose terms cancel out, or whose sum is too large or
        too small for float32.
    """
    normalized = l2_normalize(terms).astype(np.float64)
    sums = np.empty((len(weights), terms.shape[1]), np.float64)
    start = 0
    for query, factors in zip(sums, weights, strict=True):
        end = start + len(factors)
        np.matmul(factors, normalized[start:end], out=query)
        total = sum(map(abs, factors))
        length = float(np.linalg.norm(query))
        if length < _MIN_RELATIVE_LENGTH * total:
            query[:] = np.nan
        elif normalize:
            query /= length
        start = end
    with np.errstate(over="ignore", under="ignore"):
        composed = sums.astype(np.float32)
    composed[~has_direction(composed)] = np.nan
    return composed
