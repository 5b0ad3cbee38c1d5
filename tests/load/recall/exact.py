"""Exact search over vectors in a file, block by block: the truth that engines are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.load.recall.cones import Vectors

_BLOCK = 50_000


def write_images(vectors: Vectors, path: Path) -> Path:
    """Writes the images of the store as a float32 `.npy` file, unless it exists."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft.npy")
    out = np.lib.format.open_memmap(draft, "w+", np.float32, (vectors.rows, vectors.dimension))
    done = 0
    for block in vectors.images():
        out[done : done + len(block)] = block
        done += len(block)
    out.flush()
    draft.replace(path)
    return path


def nearest(
    images: NDArray[np.float32], queries: NDArray[np.float32], top_k: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Returns (queries, top_k) row numbers, best first, and their cosines."""
    best = np.full((len(queries), top_k), -2, np.float32)
    rows = np.zeros((len(queries), top_k), np.intp)
    for start in range(0, len(images), _BLOCK):
        scores = queries @ np.asarray(images[start : start + _BLOCK]).T
        scores = np.concatenate([best, scores], axis=1)
        numbers = np.arange(start - top_k, start + scores.shape[1] - top_k)
        found = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
        rows = np.where(
            found < top_k, np.take_along_axis(rows, np.minimum(found, top_k - 1), 1), numbers[found]
        )
        best = np.take_along_axis(scores, found, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(rows, order, 1), np.take_along_axis(best, order, 1)


def recall(found: list[list[int]], truth: NDArray[np.intp]) -> float:
    """Returns the share of the true neighbours that were found."""
    hits = sum(
        len(set(one[: truth.shape[1]]) & set(map(int, true))) for one, true in zip(found, truth, strict=True)
    )
    return hits / truth.size
