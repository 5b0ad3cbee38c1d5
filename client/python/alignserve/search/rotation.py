"""Rotations of vectors to fewer dimensions: PCA, and ITQ for vectors of bits.

Images and texts of one model share a space but lie in different regions of it (the modality gap), so a
rotation is fitted to both, and is the same for both: otherwise a text would no longer lie near its images.
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
        means: (dim,) float32 by modality, subtracted first; empty if vectors are not centred.
    """

    kind: RotationKind
    matrix: NDArray[np.float32]
    means: Mapping[str, NDArray[np.float32]]

    def apply(self, vectors: NDArray[np.float32], modality: str) -> NDArray[np.float32]:
        """Returns rotated vectors: (n, dim) to (n, dimensions), not normalized."""
        centred = vectors - self.means[modality] if self.means else vectors
        return np.asarray(centred @ self.matrix, np.float32)


def identity(dimension: int) -> Rotation:
    """Returns the rotation that changes nothing."""
    return Rotation("none", np.eye(dimension, dtype=np.float32), {})


def fit_pca(
    samples: Mapping[str, NDArray[np.float32]], dimensions: int, *, is_centred: bool = False
) -> Rotation:
    """Fits the directions of the largest variance, with the same weight for each modality.

    Args:
        samples: (n, dim) vectors by modality.
        dimensions: To keep.
        is_centred: Subtract the mean of each modality. Without that, the rotation of all dimensions keeps
            every cosine.

    Raises:
        ValueError: There are fewer vectors than dimensions.
    """
    means = _means(samples) if is_centred else {}
    _check_enough(samples, dimensions)
    moment = sum(_moment(vectors - means.get(name, np.float32(0))) for name, vectors in samples.items())
    _, directions = np.linalg.eigh(moment)  # ascending
    return Rotation("pca", np.asarray(directions[:, ::-1][:, :dimensions], np.float32), means)


def fit_itq(samples: Mapping[str, NDArray[np.float32]], dimensions: int, *, seed: int = 0) -> Rotation:
    """Fits a rotation after which signs lose the least (Iterative Quantization, Gong & Lazebnik 2011).

    Each modality is centred by its own mean: otherwise the modality gap would set the same bits in all
    images, and the opposite ones in all texts.

    Args:
        samples: (n, dim) vectors by modality.
        dimensions: To keep; each becomes a bit.
        seed: Of the random rotation that it starts from.

    Raises:
        ValueError: There are fewer vectors than dimensions.
    """
    reduced = fit_pca(samples, dimensions, is_centred=True)
    rows = np.concatenate([reduced.apply(vectors, name) for name, vectors in samples.items()])
    start = np.random.default_rng(seed).standard_normal((dimensions, dimensions))
    turn = np.linalg.qr(start)[0].astype(np.float32)
    for _ in range(ITQ_ROUNDS):
        signs = np.where(rows @ turn > 0, np.float32(1), np.float32(-1))
        turn = nearest_orthogonal(rows.T @ signs)
    return Rotation("itq", np.asarray(reduced.matrix @ turn, np.float32), reduced.means)


def nearest_orthogonal(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the matrix nearest to a matrix that has orthonormal rows or columns, whichever are fewer.

    For `old.T @ new` it is the orthogonal map from `old` to `new` of least squared error (Schönemann 1966).
    """
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return np.asarray(left @ right, np.float32)


def _means(samples: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {
        name: vectors.mean(axis=0, dtype=np.float64).astype(np.float32) for name, vectors in samples.items()
    }


def _moment(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(vectors.T @ vectors, np.float64) / max(len(vectors), 1)


def _check_enough(samples: Mapping[str, NDArray[np.float32]], dimensions: int) -> None:
    count = sum(map(len, samples.values()))
    if count < dimensions:
        raise ValueError(f"{count} vectors are too few to fit {dimensions} dimensions; take a larger sample")
