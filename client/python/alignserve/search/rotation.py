"""Rotations of vectors to fewer dimensions: PCA, and ITQ for vectors of bits.

Images and texts of one model share a space but lie in different regions of it (the modality gap), so a
rotation is fitted to both, and is the same for both: otherwise a text would no longer lie near its images.
Vectors are not centred: subtracting means changes cosines, and costs text → image up to a quarter of its
recall (`python -m tests.load.rotations`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

RotationKind: TypeAlias = Literal["none", "pca", "itq"]

ITQ_ROUNDS = 50  # as in Gong & Lazebnik 2011; the loss changes little after that


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """A rotation to as many dimensions or fewer.

    Attributes:
        kind: How it was fitted.
        matrix: (dim, dimensions) float32, with orthonormal columns.
    """

    kind: RotationKind
    matrix: NDArray[np.float32]

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns rotated vectors: (n, dim) to (n, dimensions), not normalized."""
        return np.asarray(vectors @ self.matrix, np.float32)


def identity(dimension: int) -> Rotation:
    """Returns the rotation that changes nothing."""
    return Rotation("none", np.eye(dimension, dtype=np.float32))


def fit_pca(samples: Mapping[str, NDArray[np.float32]], dimensions: int) -> Rotation:
    """Fits the directions in which vectors are longest, with the same weight for each modality.

    Args:
        samples: (n, dim) vectors by modality.
        dimensions: To keep. The rotation of all dimensions keeps every cosine.

    Raises:
        ValueError: There are fewer vectors than dimensions.
    """
    count = sum(map(len, samples.values()))
    if count < dimensions:
        raise ValueError(f"{count} vectors are too few to fit {dimensions} dimensions; take a larger sample")
    moment = sum(_moment(vectors) for vectors in samples.values())
    _, directions = np.linalg.eigh(moment)  # ascending
    return Rotation("pca", np.asarray(directions[:, ::-1][:, :dimensions], np.float32))


def fit_itq(samples: Mapping[str, NDArray[np.float32]], dimensions: int, *, seed: int = 0) -> Rotation:
    """Fits a rotation after which signs lose the least (Iterative Quantization, Gong & Lazebnik 2011).

    Args:
        samples: (n, dim) vectors by modality.
        dimensions: To keep; each becomes a bit.
        seed: Of the random rotation that it starts from.

    Raises:
        ValueError: There are fewer vectors than dimensions.
    """
    reduced = fit_pca(samples, dimensions)
    rows = np.concatenate([reduced.apply(vectors) for vectors in samples.values()])
    start = np.random.default_rng(seed).standard_normal((dimensions, dimensions))
    turn = np.linalg.qr(start)[0].astype(np.float32)
    for _ in range(ITQ_ROUNDS):
        signs = np.where(rows @ turn > 0, np.float32(1), np.float32(-1))
        turn = nearest_orthogonal(rows.T @ signs)
    return Rotation("itq", np.asarray(reduced.matrix @ turn, np.float32))


def nearest_orthogonal(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the matrix nearest to a matrix that has orthonormal rows or columns, whichever are fewer.

    For `old.T @ new` it is the orthogonal map from `old` to `new` of least squared error (Schönemann 1966).
    """
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return np.asarray(left @ right, np.float32)


def _moment(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(vectors.T @ vectors, np.float64) / max(len(vectors), 1)
