"""Recall of search across images and captions: an image finds its captions, and a caption its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve.evaluate.vectors import IntArray, Vectors, cosines

TOP = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Recall:
    """Shares of queries that find what they should among the first results, from 0 to 1.

    Attributes:
        queries: Number of queries.
        candidates: Number of results there could be.
        at: The share by number of results looked at.
    """

    queries: int
    candidates: int
    at: dict[int, float]

    @classmethod
    def of(cls, ranks: IntArray, candidates: int, top: Sequence[int] = TOP) -> Recall:
        """Returns the recall of queries.

        Args:
            ranks: (queries,), of the first right result, 0 for the best.
            candidates: Number of results there could be.
            top: Numbers of results to look at.
        """
        at = {k: float((ranks < k).mean()) if len(ranks) else 0.0 for k in top}
        return cls(len(ranks), candidates, at)

    def as_data(self) -> dict[str, Any]:
        """Returns the measures as JSON has them."""
        shares = {f"recall_at_{k}": share for k, share in self.at.items()}
        return {"queries": self.queries, "candidates": self.candidates, **shares}


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks of the first right result of each query, 0 for the best; results as similar keep their order.

    Attributes:
        of_captions: (images with captions,), for each image among all captions; its best caption counts.
        of_images: (captions,), for each caption among all images.
    """

    of_captions: NDArray[np.int64]
    of_images: NDArray[np.int64]


def ranks(images: Vectors, captions: Vectors, image_of: NDArray[np.int64]) -> Ranks:
    """Ranks every image for every caption and the other way round, in memory for blocks of similarities.

    Args:
        images: Of length 1.
        captions: Of length 1.
        image_of: (captions,), the row of each caption's image. An image may have any number of captions; one
            without any is a result, but not a query.
    """
    own = _own_similarities(images, captions, image_of)  # (captions,)
    best, first = _best_captions(own, image_of, len(images))  # (images,) each
    of_images = np.zeros(len(captions), np.int64)
    of_captions = np.zeros(len(images), np.int64)
    for caption, some_captions in captions.blocks():
        of_block = slice(caption, caption + len(some_captions))
        numbers = np.arange(of_block.start, of_block.stop)
        right, limit = image_of[of_block, None], own[of_block, None]
        for image, some_images in images.blocks():
            of_other = slice(image, image + len(some_images))
            others = np.arange(of_other.start, of_other.stop)
            found = cosines(some_captions, some_images)  # (captions, images) of these blocks
            # not as computed here, so that a caption is exactly as similar to its image as it was before
            found = np.where(others == right, limit, found)
            is_before = (found > limit) | ((found == limit) & (others < right))
            of_images[of_block] += is_before.sum(axis=1)
            is_before = (found > best[of_other]) | (
                (found == best[of_other]) & (numbers[:, None] < first[of_other])
            )
            of_captions[of_other] += is_before.sum(axis=0)
    return Ranks(of_captions[np.isfinite(best)], of_images)


def _own_similarities(images: Vectors, captions: Vectors, image_of: NDArray[np.int64]) -> NDArray[np.float32]:
    own = np.empty(len(captions), np.float32)
    for start, block in captions.blocks():
        end = start + len(block)
        pictures = images.take(image_of[start:end])
        own[start:end] = np.einsum("ij,ij->i", block.astype(np.float64), pictures.astype(np.float64))
    return own


def _best_captions(
    own: NDArray[np.float32], image_of: NDArray[np.int64], images: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the similarity of each image's best caption, -inf without any, and that caption's number."""
    best = np.full(images, -np.inf, np.float32)
    np.maximum.at(best, image_of, own)
    first = np.full(images, len(own), np.int64)
    is_best = own == best[image_of]
    np.minimum.at(first, image_of[is_best], np.flatnonzero(is_best))
    return best, first
