"""Recall across images and captions, against a search that keeps every similarity."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from alignserve.evaluate.neighbours import neighbour_labels, ranks_of_labels
from alignserve.evaluate.retrieval import Recall, ranks
from alignserve.evaluate.vectors import BLOCK_ROWS, Vectors


def vectors(rows: np.ndarray) -> Vectors:
    made = Vectors(rows.shape[1])
    for row in rows:
        made.append(row / np.linalg.norm(row))
    return made


def array(of: Vectors) -> np.ndarray:
    return np.concatenate([block for _, block in of.blocks()]).astype(np.float64)


def test_captions_and_images_find_each_other() -> None:
    """Image 0 has captions 0 and 1, of which one is nearer to image 1; image 1 has caption 2."""
    images = vectors(np.array([[1.0, 0.0], [0.0, 1.0]]))
    captions = vectors(np.array([[1.0, 0.1], [0.1, 1.0], [0.0, 1.0]]))

    found = ranks(images, captions, np.array([0, 0, 1]))

    assert found.of_images.tolist() == [0, 1, 0]
    assert found.of_captions.tolist() == [0, 0]  # any of its captions counts


@pytest.mark.parametrize("images", [BLOCK_ROWS - 1, BLOCK_ROWS + 5])
def test_blocks_make_no_difference(images: int) -> None:
    """More images and captions than a block has, with ties: some images and captions come twice."""
    chance = np.random.default_rng(images)
    rows = chance.integers(-2, 3, (images, 4)) + 0.5
    image_of = chance.integers(0, images, 2 * images)
    texts = rows[image_of] + chance.integers(-1, 2, (2 * images, 4))
    pictures, captions = vectors(rows), vectors(texts)

    found = ranks(pictures, captions, image_of)

    similarities = (array(captions) @ array(pictures).T).astype(np.float32)
    order = np.argsort(-similarities, axis=1, kind="stable")
    assert found.of_images.tolist() == (order == image_of[:, None]).argmax(axis=1).tolist()
    order = np.argsort(-similarities.T, axis=1, kind="stable")
    with_captions = np.unique(image_of)
    is_own = image_of[order[with_captions]] == with_captions[:, None]
    assert found.of_captions.tolist() == is_own.argmax(axis=1).tolist()


def test_images_without_captions_are_found_and_do_not_search() -> None:
    """An image without a caption is in the way of the others, and not a query."""
    images = vectors(np.array([[1.0, 0.0], [0.9, 0.1]]))

    found = ranks(images, vectors(np.array([[1.0, 0.0]])), np.array([1]))

    assert found.of_images.tolist() == [1]
    assert found.of_captions.tolist() == [0]


def test_recall_counts_ranks_below_k() -> None:
    """Of the ranks 0, 4 and 5, one is among the first, two among the first five, all among the first ten."""
    recall = Recall.of(np.array([0, 4, 5]), 20)

    assert recall.at == pytest.approx({1: 1 / 3, 5: 2 / 3, 10: 1.0})
    assert recall.as_data()["recall_at_5"] == pytest.approx(2 / 3)


def test_neighbours_leave_out_the_image_itself() -> None:
    """The nearest of the others counts, best first; there are only three."""
    images = vectors(np.array([[1, 0.0], [1, 0.1], [1, 0.3], [0, 1.0]]))

    found = neighbour_labels(images, np.array([0, 1, 2, 3]), 5)

    assert found[0].tolist() == [1, 2, 3, -1, -1]
    assert found[3].tolist() == [2, 1, 0, -1, -1]


def test_neighbours_agree_with_sorting_everything() -> None:
    """More images than a block has."""
    chance = np.random.default_rng(5)
    rows = chance.standard_normal((BLOCK_ROWS + 100, 8))
    labels = chance.integers(0, 7, len(rows))
    images = vectors(rows)

    found = neighbour_labels(images, labels, 10)

    similarities = array(images) @ array(images).T
    np.fill_diagonal(similarities, -np.inf)
    expected = labels[np.argsort(-similarities, axis=1)[:, :10]]
    assert (found == expected).mean() > 0.999  # float32 may swap two that are as near


def test_neighbours_in_a_gallery() -> None:
    """The images searched are others, and an image that is in both is found."""
    queries, gallery = vectors(np.array([[1.0, 0.0]])), vectors(np.array([[0.0, 1.0], [1.0, 0.0]]))

    found = neighbour_labels(queries, np.array([7, 8]), 1, gallery)

    assert found.tolist() == [[8]]


def test_rank_of_the_first_neighbour_with_the_label() -> None:
    """`top` stands for none."""
    neighbours = np.array([[1, 2, 1], [2, 1, 1], [2, 2, -1]])

    assert ranks_of_labels(neighbours, np.array([1, 1, 1])).tolist() == [0, 1, 3]


def test_rows_are_taken_by_number() -> None:
    """Also across blocks, and more than once."""
    rows = np.arange(2.0 * (BLOCK_ROWS + 2)).reshape(-1, 2).astype(np.float32)
    made = Vectors(2)
    for row in rows:
        made.append(row)
    numbers = np.array([BLOCK_ROWS + 1, 0, BLOCK_ROWS, 0])

    assert made.take(numbers).tolist() == rows[numbers].tolist()
    assert len(made) == BLOCK_ROWS + 2


def test_memory_is_that_of_the_vectors_and_some_blocks() -> None:
    """A full matrix of these similarities would have 256 MB in single precision."""
    chance = np.random.default_rng(0)
    images = vectors(chance.standard_normal((8000, 16)))
    labels = chance.integers(0, 10, 8000)
    tracemalloc.start()

    ranks(images, images, np.arange(8000))
    neighbour_labels(images, labels, 10)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 << 20
