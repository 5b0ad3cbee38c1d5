"""Rotations: what they keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alignserve.search.rotation import fit_itq, fit_pca, nearest_orthogonal


def test_pca_of_all_dimensions_keeps_every_product(clouds: Any) -> None:
    """A rotation without centring changes no cosine, of images with texts neither."""
    rotation = fit_pca(clouds, 32)

    images, texts = (rotation.apply(clouds[name]) for name in ("image", "text"))
    assert np.allclose(images @ texts.T, clouds["image"] @ clouds["text"].T, atol=1e-4)


def test_pca_keeps_the_directions_of_the_largest_variance(clouds: Any) -> None:
    """Most of the length remains in a quarter of the dimensions."""
    rotation = fit_pca(clouds, 8)

    assert np.allclose(rotation.matrix.T @ rotation.matrix, np.eye(8), atol=1e-5)
    assert np.sum(rotation.apply(clouds["text"]) ** 2) > 0.94 * np.sum(clouds["text"] ** 2)


def test_itq_loses_less_to_signs_than_pca(clouds: Any) -> None:
    """The cosine of a vector and its signs grows."""

    def loss(rotation) -> float:
        rows = rotation.apply(clouds["image"])
        return float(np.mean(np.sum(np.abs(rows), axis=1) / np.linalg.norm(rows, axis=1)))

    assert loss(fit_itq(clouds, 16)) > loss(fit_pca(clouds, 16)) + 0.1


@pytest.mark.parametrize("new_dim", [12, 16, 24])
def test_the_nearest_orthogonal_map_is_found_again(rng: np.random.Generator, new_dim: int) -> None:
    """If new vectors are rotated old ones, in fewer, as many or more dimensions, the map is that rotation."""
    larger, smaller = max(16, new_dim), min(16, new_dim)
    basis = np.linalg.qr(rng.standard_normal((larger, smaller)))[0]
    true = basis if new_dim < 16 else basis.T
    old = rng.standard_normal((200, 16)) @ (true @ true.T)

    found = nearest_orthogonal((old.T @ (old @ true)).astype(np.float32))

    assert np.allclose(old @ found, old @ true, atol=1e-3)


def test_fewer_vectors_than_dimensions_are_refused(rng: np.random.Generator) -> None:
    """The message has their number."""
    with pytest.raises(ValueError, match="10 vectors are too few to fit 32 dimensions"):
        fit_pca({"image": rng.standard_normal((10, 32)).astype(np.float32)}, 32)
