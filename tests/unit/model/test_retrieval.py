"""Pairs are compared, and queries composed, as their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from alignserve_server.model.encoder import l2_normalize
from alignserve_server.model.retrieval import compare_pairs, compose_queries


def vectors(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32) * 7


def test_a_pair_has_its_cosine_and_logit() -> None:
    """Each image is compared with the text in its row only."""
    images, texts = vectors(5), vectors(5, seed=1)

    similarities, logits = compare_pairs(images, texts, 0.05)

    expected = (l2_normalize(images) * l2_normalize(texts)).sum(axis=1)
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    np.testing.assert_allclose(logits, expected / 0.05, rtol=1e-5)
    assert similarities.dtype == logits.dtype == np.float32


@pytest.mark.parametrize("sign", [1, -1])
def test_similarities_stay_within_their_range(sign: int) -> None:
    """Rounding must not yield a cosine above 1 or below -1."""
    images = vectors(500)

    similarities, _ = compare_pairs(images, sign * images, 1.0)

    assert (np.abs(similarities) <= 1).all()
    np.testing.assert_allclose(similarities, sign, atol=1e-6)


def test_a_pair_does_not_depend_on_others() -> None:
    """The same pair has the same numbers in any call."""
    images, texts = vectors(9), vectors(9, seed=1)

    together = compare_pairs(images, texts, 0.05)

    for row in range(9):
        alone = compare_pairs(images[row : row + 1], texts[row : row + 1], 0.05)
        assert (alone.similarities[0], alone.logits[0]) == (together.similarities[row], together.logits[row])


def test_a_query_is_the_weighted_sum_of_normalized_terms() -> None:
    """Each query has its own terms; the length of a term's embedding does not matter."""
    terms, weights = vectors(6), [[1.0, -0.5], [2.0], [0.25, 0.25, 3.0]]
    unit = l2_normalize(terms)
    sums = np.stack([unit[0] - 0.5 * unit[1], 2 * unit[2], 0.25 * unit[3] + 0.25 * unit[4] + 3 * unit[5]])

    composed = compose_queries(terms, weights, normalize=False)
    normalized = compose_queries(terms * 100, weights, normalize=True)

    np.testing.assert_allclose(composed, sums, atol=1e-6)
    np.testing.assert_allclose(normalized, l2_normalize(sums), atol=1e-6)
    assert composed.dtype == normalized.dtype == np.float32


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("rows", "factors"),
    [
        ([0, 0], [1.0, -1.0]),
        ([0, 0, 0], [0.1, 0.2, -0.3]),
        ([0, 1, 1, 0], [1.0, 2.0, -2.0, -1.0]),
        ([0, 0], [1e30, -1e30]),
    ],
)
def test_terms_that_cancel_out_have_no_embedding(
    rows: list[int], factors: list[float], normalize: bool
) -> None:
    """What rounding leaves of them has no meaning; other queries of the call are not affected."""
    terms = vectors(3)

    composed = compose_queries(terms[[*rows, 2]], [factors, [1.0]], normalize=normalize)

    assert np.isnan(composed[0]).all()
    np.testing.assert_allclose(composed[1], l2_normalize(terms[2]), atol=1e-6)


@pytest.mark.parametrize("factor", [1e-45, 1e38])
def test_only_the_ratio_of_weights_matters_for_the_direction(factor: float) -> None:
    """Tiny and huge weights are fine, unless the sum itself is asked for and does not fit float32."""
    terms = vectors(2)
    expected = compose_queries(terms, [[3.0, -1.0]], normalize=True)

    scaled = [[3 * factor, -factor]]

    np.testing.assert_allclose(compose_queries(terms, scaled, normalize=True), expected, atol=1e-6)
    assert np.isnan(compose_queries(terms, scaled, normalize=False)).all()


def test_nearly_opposite_terms_still_have_an_embedding() -> None:
    """Only differences within rounding count as none."""
    terms = vectors(2)
    terms[1] = terms[0] + 1e-3 * terms[1]

    composed = compose_queries(terms, [[1.0, -1.0]], normalize=True)

    np.testing.assert_allclose(np.linalg.norm(composed), 1.0, atol=1e-6)
