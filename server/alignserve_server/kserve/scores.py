"""The outputs of `classify`, filled image by image: arrays, and classes as Triton writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve_server.api import ScoredLabel

_ATTRIBUTES = {"scores": "score", "similarity": "similarity", "logits": "logit", "label_index": "label_index"}
_LARGEST_NUMBERS = len(b"-1.23456789e-38:2147483647:")  # before the label of a class


class ScoreTable:
    """The requested outputs for a number of images.

    An array has a column for each label, in the order of the labels; or for each of the `top_k` best ones,
    best first. A class is `value:index:label`, best first.
    """

    def __init__(self, image_count: int, label_count: int, top_k: int, outputs: Mapping[str, int]) -> None:
        """Starts empty.

        Args:
            image_count: Number of images.
            label_count: Number of labels.
            top_k: Number of columns; 0 for one per label.
            outputs: Names of outputs, and how many classes each returns instead of an array.
        """
        self._is_ranked = bool(top_k)
        self._row = 0
        columns = min(top_k or label_count, label_count)
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.empty((image_count, columns), "<i4" if name == "label_index" else "<f4")
            for name, class_count in outputs.items()
            if not class_count
        }
        self._classes: dict[str, list[list[bytes]]] = {
            name: [] for name, class_count in outputs.items() if class_count
        }
        self._outputs = outputs

    def add(self, labels: Sequence[str], scored: Sequence[ScoredLabel]) -> None:
        """Adds the next image: its scored labels, best first. Can be called from a thread."""
        columns = slice(None) if self._is_ranked else [each.label_index for each in scored]
        for name, array in self._arrays.items():
            array[self._row, columns] = [getattr(each, _ATTRIBUTES[name]) for each in scored]
        for name, rows in self._classes.items():
            rows.append([_class(labels, each, name) for each in scored[: self._outputs[name]]])
        self._row += 1

    def outputs(self) -> Mapping[str, NDArray[Any] | list[list[bytes]]]:
        """Returns the outputs by name, in the order of the request."""
        outputs: dict[str, NDArray[Any] | list[list[bytes]]] = {**self._arrays, **self._classes}
        return {name: outputs[name] for name in self._outputs}


def classes_bytes(labels: Sequence[bytes], class_count: int) -> int:
    """Returns the maximum size of the classes of one image, without what encodes them."""
    sizes = np.fromiter(map(len, labels), np.int64)
    if class_count < len(sizes):
        sizes = np.partition(sizes, -class_count)[-class_count:]
    return int(sizes.sum()) + len(sizes) * _LARGEST_NUMBERS


def _class(labels: Sequence[str], scored: ScoredLabel, name: str) -> bytes:
    value: float = getattr(scored, _ATTRIBUTES[name])
    return f"{value:.9g}:{scored.label_index}:{labels[scored.label_index]}".encode()
