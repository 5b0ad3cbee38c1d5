"""The labels of each image's nearest images: how well classes differ without any text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alignserve.evaluate.vectors import IntArray, Vectors


def neighbour_labels(
    queries: Vectors, labels: IntArray, top: int, gallery: Vectors | None = None
) -> NDArray[np.int64]:
    """Returns (queries, top) labels of the most similar images, best first; -1 where there are fewer.

    Memory holds blocks of similarities.

    Args:
        queries: Of length 1.
        labels: (images searched,), their labels.
        top: Number of neighbours.
        gallery: The images searched; by default the queries, each of which leaves itself out.
    """
    leaves_one_out = gallery is None
    searched = queries if gallery is None else gallery
    found = np.full((len(queries), top), -1, np.int64)
    for start, block in queries.blocks():
        best = np.full((len(block), top), -np.inf, np.float32)
        numbers = np.full((len(block), top), -1, np.int64)
        for other_start, other in searched.blocks():
            similarities = block @ other.T
            if leaves_one_out and other_start == start:
                np.fill_diagonal(similarities, -np.inf)
            # Ever fewer blocks have something better, and looking is cheaper than merging.
            rows = np.flatnonzero(similarities.max(axis=1) > best.min(axis=1))
            others = np.broadcast_to(
                np.arange(other_start, other_start + len(other)), (len(rows), len(other))
            )
            best[rows], numbers[rows] = _merged(best[rows], numbers[rows], similarities[rows], others)
        order = np.lexsort((numbers, -best), axis=1)
        best = np.take_along_axis(best, order, axis=1)
        numbers = np.take_along_axis(numbers, order, axis=1)
        found[start : start + len(block)] = np.where(np.isfinite(best), labels[numbers], -1)
    return found


def ranks_of_labels(neighbours: NDArray[np.int64], labels: IntArray) -> NDArray[np.int64]:
    """Returns (queries,) the rank of the first neighbour with the query's label; `top` if there is none."""
    is_right = np.equal(neighbours, labels[:, None])
    ranks: NDArray[np.int64] = np.where(is_right.any(axis=1), is_right.argmax(axis=1), neighbours.shape[1])
    return ranks


def _merged(
    best: NDArray[np.float32],
    numbers: NDArray[np.int64],
    similarities: NDArray[np.float32],
    others: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the best of those so far and of a block, in no order."""
    top = best.shape[1]
    both = np.concatenate([best, similarities], axis=1)
    chosen = np.argpartition(both, both.shape[1] - top, axis=1)[:, -top:]
    return (
        np.take_along_axis(both, chosen, axis=1),
        np.take_along_axis(np.concatenate([numbers, others], axis=1), chosen, axis=1),
    )
