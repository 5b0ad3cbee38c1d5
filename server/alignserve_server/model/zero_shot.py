"""Zero-shot classification: scores images against the text embeddings of labels.

The method and the temperature are those of ALIGN (Jia et al., 2021, https://arxiv.org/abs/2102.05918);
averaging several prompts per label follows CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020,
section 3.1.4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PLACEHOLDER = "{label}"


class ScoredLabel(NamedTuple):  # built by the ten thousand: a frozen dataclass takes three times as long
    """How well one label matches an image."""

    label_index: int
    score: float  # softmax of logit over all labels
    similarity: float  # cosine
    logit: float  # similarity / temperature


def prompts_of(label: str, templates: Sequence[str]) -> Iterator[str]:
    """Yields the prompts of a label: each template with the label, or the label itself if there are none."""
    return (template.replace(PLACEHOLDER, label) for template in templates or (PLACEHOLDER,))


def is_template(text: str) -> bool:
    """Returns whether a text has exactly one placeholder."""
    return text.count(PLACEHOLDER) == 1


def score_images(
    images: NDArray[np.float32], labels: NDArray[np.float32], temperature: float, top_k: int = 0
) -> Iterator[list[ScoredLabel]]:
    """Scores images against labels, one at a time: all results would be tens of thousands of objects.

    Args:
        images: (images, embedding_dimension), each L2-normalized.
        labels: (labels, embedding_dimension), each L2-normalized.
        temperature: The checkpoint's temperature: a logit is the cosine divided by it.
        top_k: Maximum number of labels per image; 0 returns all.

    Yields:
        For each image, its labels by descending score; equal scores keep the order of the request.
    """
    # In float64, then rounded: in a float32 product the last digits of a label's similarity depend on the
    # label's position, and so would its rank.
    similarities = (images.astype(np.float64) @ labels.T.astype(np.float64)).astype(np.float32)
    logits = similarities.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = weights / weights.sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, : top_k or None]
    columns = [np.take_along_axis(of, order, axis=1) for of in (scores, similarities.clip(-1.0, 1.0), logits)]
    for row in zip(order, *columns, strict=True):
        # tolist() first: reading numbers from arrays one by one takes four times as long
        yield list(map(ScoredLabel, *(column.tolist() for column in row)))


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A call's labels and templates, and the cache key of each label's embedding."""

    labels: Sequence[str]
    templates: Sequence[str]
    keys: Sequence[bytes]  # of the labels, in order
    size_bytes: int  # of labels and templates in UTF-8

    @classmethod
    def of(cls, labels: Sequence[str], templates: Sequence[str]) -> LabelSet:
        """Builds the set; takes milliseconds if labels are many or long."""
        # The keys are digests, not texts, so that the cache size depends only on the number of labels. The
        # templates are hashed once, not once per label.
        digest = hashlib.blake2b(digest_size=16)
        size_bytes = sum([_update(digest, template) for template in templates])
        keys = []
        for label in labels:
            of_label = digest.copy()
            size_bytes += _update(of_label, label)
            keys.append(of_label.digest())
        return cls(labels, templates, keys, size_bytes)


def _update(digest: hashlib.blake2b, part: str) -> int:
    """Adds a text to a digest; returns the text's size in bytes."""
    # Lengths separate the parts: ("ab", ["c"]) is not ("a", ["bc"]).
    encoded = part.encode()
    digest.update(len(encoded).to_bytes(8, "little"))
    digest.update(encoded)
    return len(encoded)
