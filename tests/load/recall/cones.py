"""Vectors with the modality gap: images and texts lie in two narrow cones that hardly overlap.

An image is the mean direction of images, plus the direction of its topic, plus what is its own. A text is the
mean direction of texts, plus a weak component along its topic, plus what is its own in other directions.
Topics have very different sizes (Zipf). The variances follow a power law over the axes, as those of trained
models do. The figures of a model are in `Cones`; `tests.load.recall.gap` measures them.

Vectors are generated, since a million crops of a few photos would not resemble a million photos: the
neighbours of a crop are other crops of its photo.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 10_000  # rows that are made at a time


@dataclass(frozen=True)
class Cones:
    """The figures of a model.

    Attributes:
        image_image: Mean cosine of two unrelated images.
        text_text: Mean cosine of two unrelated texts.
        text_image: Mean cosine of an unrelated text and image; the gap.
        matched: Mean cosine of a text and an image of its topic.
        same_topic: Mean cosine of two images of a topic.
        decay: Exponent of the power law of variances.
        rows_per_topic: Mean number of images of a topic.
    """

    image_image: float
    text_text: float
    text_image: float
    matched: float
    same_topic: float
    decay: float
    rows_per_topic: int = 200


@dataclass(frozen=True)
class Vectors:
    """A world of topics, from which any number of images and texts can be drawn.

    Args:
        cones: The figures of the model.
        rows: Number of images in the store, from which the number of topics follows.
        dimension: Of the vectors.
    """

    cones: Cones
    rows: int
    dimension: int = 640
    seed: int = 0

    def images(self) -> Iterator[NDArray[np.float32]]:
        """Yields the images of the store in blocks of (rows, dimension)."""
        for start in range(0, self.rows, BLOCK):
            yield self._images(min(BLOCK, self.rows - start), np.random.default_rng([self.seed, 1, start]))

    def image_queries(self, count: int) -> NDArray[np.float32]:
        """Returns images that are not in the store, (count, dimension)."""
        return self._images(count, np.random.default_rng([self.seed, 2]))

    def text_queries(self, count: int) -> NDArray[np.float32]:
        """Returns texts, (count, dimension)."""
        cones, rng = self.cones, np.random.default_rng([self.seed, 3])
        basis = _basis(self.dimension, self.seed)
        topics = self._topics(rng, count)
        # cosine to an image of the topic = gap + share of the topic in both
        image_topic = np.sqrt(cones.same_topic - cones.image_image)
        signal = (cones.matched - cones.text_image) / image_topic
        own = np.sqrt(max(1 - cones.text_text - signal**2, 0))
        axes = np.random.default_rng([self.seed, 5]).permutation(
            self.dimension
        )  # texts vary along other axes
        noise = rng.standard_normal((count, self.dimension)) * _spread(self.dimension, cones.decay)[axes]
        means = self._mean_directions(basis)[1]
        made = means * np.sqrt(cones.text_text) + (signal * topics + own * noise) @ basis
        return _normalized(made)

    def _images(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        cones = self.cones
        basis = _basis(self.dimension, self.seed)
        topics = self._topics(rng, count)
        noise = rng.standard_normal((count, self.dimension)) * _spread(self.dimension, cones.decay)
        inner = np.sqrt(cones.same_topic - cones.image_image) * topics + np.sqrt(1 - cones.same_topic) * noise
        made = self._mean_directions(basis)[0] * np.sqrt(cones.image_image) + inner @ basis
        return _normalized(made)

    def _topics(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Returns topics drawn by their sizes: (count, dimension) directions in the axes of the basis."""
        number = max(self.rows // self.cones.rows_per_topic, 10)
        weights = 1 / np.arange(1, number + 1) ** 0.8
        drawn = rng.choice(number, count, p=weights / weights.sum())
        spread = _spread(self.dimension, self.cones.decay)
        made = np.empty((count, self.dimension))
        for topic in np.unique(drawn):
            direction = np.random.default_rng([self.seed, 4, topic]).standard_normal(self.dimension) * spread
            made[drawn == topic] = direction
        return made

    def _mean_directions(self, basis: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        cones = self.cones
        cosine = cones.text_image / np.sqrt(cones.image_image * cones.text_text)
        image, other = basis[-1], basis[-2]  # the axes with the least variance
        return image, cosine * image + np.sqrt(1 - cosine**2) * other


def _spread(dimension: int, decay: float) -> NDArray[np.float64]:
    """Returns standard deviations along the axes; the variances sum to 1."""
    variances = (np.arange(dimension) + 10.0) ** -decay
    return np.sqrt(variances / variances.sum())


@lru_cache
def _basis(dimension: int, seed: int) -> NDArray[np.float64]:
    found, _ = np.linalg.qr(np.random.default_rng([seed, 0]).standard_normal((dimension, dimension)))
    return np.asarray(found.T)


def _normalized(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


# Of the embedded checkpoint, by `tests.load.recall.gap` on 430 captioned photos, 2026-11-29; `same_topic` is
# the cosine of a photo and its nearest other.
MINI = Cones(
    image_image=0.108, text_text=0.038, text_image=0.004, matched=0.155, same_topic=0.563, decay=1.25
)
