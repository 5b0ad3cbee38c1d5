"""Where each noun should point: the mean of its ImageNet classes, or of the classes that are most like it.

A noun with classes below it in WordNet (`dog`, `vehicle`) points to their mean. Any other noun points to the
classes that MiniLM finds similar by name and definition, mixed with the nearest noun above that has classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.recipes.mini.imagenet import ImageClass
from server.recipes.mini.wordnet import WordNet

Floats = NDArray[np.float32]

_SHARPNESS = 1 / 0.04
_NEIGHBOURS = 12
_SEEN = (
    "physical entity", "act", "natural phenomenon", "color", "written communication", "representation",
    "vegetation", "gathering", "family", "time of day",
)  # fmt: skip
_COMPOUNDS = 10  # parts of a compound are commoner than itself
_NAMED = "artifact"  # of names, only those of buildings and other works: no persons, no towns


@dataclass(frozen=True)
class Noun:
    """Something that the text tower learns to name, and what kind of target it has.

    `shows` are the classes, by index, that are pictures of it. Of those in `may` it is not known.
    """

    offset: int  # of the synset; below 0 for everyday words
    names: tuple[str, ...]
    definition: str
    kind: str  # "class", "above" a class, "everyday", or "other"
    shows: tuple[int, ...] = ()
    may: tuple[int, ...] = ()


def leaves(wordnet: WordNet, classes: Sequence[ImageClass]) -> dict[int, list[int]]:
    """The classes under each synset that has any, by index, in order."""
    below: dict[int, list[int]] = {}
    for at, each in enumerate(classes):
        for offset in wordnet.above(each.offset):
            below.setdefault(offset, []).append(at)
    return below


def mean_directions(below: Mapping[int, Sequence[int]], directions: Floats) -> dict[int, Floats]:
    """The normalized mean direction of each synset's classes."""
    return {offset: normalized(directions[list(indices)].mean(axis=0)) for offset, indices in below.items()}


def commonest_nouns(
    wordnet: WordNet, by_frequency: Sequence[str], counts: Counter[str], excluded: set[int], limit: int
) -> list[int]:
    """The first senses of the commonest nouns without classes for what a photograph can show.

    First come the words of `by_frequency`, in its order, then others by `counts`, compounds behind.
    """
    seen = {offset for name in _SEEN if (offset := wordnet.first_sense(name)) is not None}
    named = wordnet.first_sense(_NAMED)
    place = {word: at for at, word in enumerate(by_frequency)}
    ranked: dict[int, tuple[float, float]] = {}
    for word, offsets in wordnet.senses.items():
        if offsets[0] in excluded or not word.replace(" ", "").isalpha():
            continue
        above = wordnet.above(offsets[0])
        if seen.isdisjoint(above) or (wordnet.synsets[offsets[0]].is_name and named not in above):
            continue
        parts = word.split()
        count = min(counts[part] for part in parts) / (1 if len(parts) == 1 else _COMPOUNDS)
        rank = (place.get(word, math.inf), -count)
        ranked[offsets[0]] = min(rank, ranked.get(offsets[0], rank))
    order = sorted(ranked, key=lambda offset: (*ranked[offset], offset))
    return order[:limit]


def similar_direction(similarities: Floats, directions: Floats) -> Floats:
    """The mean of the most similar classes' directions, weighted by a softmax. `similarities` is (1000,)."""
    nearest = np.argsort(-similarities, kind="stable")[:_NEIGHBOURS]
    weights = np.exp(_SHARPNESS * (similarities[nearest] - similarities[nearest[0]]))
    return normalized((weights / weights.sum()) @ directions[nearest])


def mixed_with_kind(direction: Floats, kind: Floats, steps: int, leaf_count: int) -> Floats:
    """Adds the direction of the nearest covered kind, the less the farther and the broader it is."""
    return normalized(direction + kind / math.sqrt(steps * leaf_count))


def nearest_covered(
    wordnet: WordNet, offset: int, below: Mapping[int, Sequence[int]]
) -> tuple[int, int] | None:
    """The nearest synset above with classes, and the steps to it; of several, the one with fewest classes."""
    found = [
        (steps, len(below[higher]), higher)
        for higher, steps in wordnet.above(offset).items()
        if higher in below
    ]
    if not found:
        return None
    steps, _, higher = min(found)
    return higher, steps


def normalized(vectors: Floats) -> Floats:
    """Scaled to length 1 along the last axis."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
