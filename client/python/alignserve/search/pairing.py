"""Pairs of an old and a new vector of the same input."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alignserve.search.inputs import Embedded
from alignserve.search.migration import Pairs
from alignserve.search.vectors import (
    COLUMNS,
    VectorFolder,
    VectorsError,
    normalized,
    sample_rows,
    vectors_of,
)


def pairs_by_key(old: VectorFolder, new: VectorFolder, count: int, seed: int) -> dict[str, Pairs]:
    """Pairs rows of two folders that have the same key.

    Args:
        old: Vectors of the old model.
        new: Vectors of the new model, of some of the rows.
        count: Number of rows of `new` to take at most, at random.
        seed: Of the choice.

    Raises:
        VectorsError: They have no keys in common, or one lacks vectors that the other has.
    """
    chosen = sample_rows(new.rows, count, seed)
    numbers = _rows_with_keys(old, new.keys(chosen))
    if not numbers.size:
        raise VectorsError(
            f"{new.path} and {old.path} have no keys in common; embed a sample of the same rows"
        )
    _check_covers(old, new.modalities, str(new.path))
    return {
        name: _paired(vectors_by_key(old, numbers, name), vectors_by_key(new, chosen, name))
        for name in old.modalities
    }


def pairs_by_embedding(
    old: VectorFolder, numbers: NDArray[np.int64], embedded: Iterable[Embedded]
) -> tuple[dict[str, Pairs], list[Embedded]]:
    """Pairs the rows of a sample with vectors that the new model has just made of them.

    Returns:
        The pairs by modality, and what could not be embedded.
    """
    new: dict[str, dict[str, NDArray[np.float32]]] = {}
    failed = []
    for each in embedded:
        if each.vector is None:
            failed.append(each)
        else:
            new.setdefault(each.modality, {})[each.key] = normalized(each.vector)
    _check_covers(old, tuple(new), "the sample that was embedded")
    return {name: _paired(vectors_by_key(old, numbers, name), new[name]) for name in old.modalities}, failed


def vectors_by_key(
    folder: VectorFolder, numbers: NDArray[np.int64], modality: str
) -> dict[str, NDArray[np.float32]]:
    """Returns the vectors of some rows, of length 1, without rows that have none."""
    is_there, stored = vectors_of(folder.take(numbers, [COLUMNS[modality]]).column(0))
    return dict(zip(folder.keys(numbers[is_there]), normalized(stored), strict=True))


def _check_covers(old: VectorFolder, modalities: tuple[str, ...], where: str) -> None:
    missing = [name for name in old.modalities if name not in modalities]
    if missing:
        raise VectorsError(
            f"{old.path} has {COLUMNS[missing[0]]}, but {where} does not; both are needed to map it"
        )


def _paired(old: dict[str, NDArray[np.float32]], new: dict[str, NDArray[np.float32]]) -> Pairs:
    both = [key for key in old if key in new]
    if not both:
        raise VectorsError("no row has both an old and a new vector; take a larger sample")
    return Pairs(np.stack([old[key] for key in both]), np.stack([new[key] for key in both]))


def _rows_with_keys(folder: VectorFolder, keys: list[str]) -> NDArray[np.int64]:
    """Returns the numbers of the rows with these keys, ascending."""
    wanted = pa.array(keys, pa.string())
    found = [
        first + np.flatnonzero(pc.is_in(batch.column(0), value_set=wanted))
        for first, batch in folder.batches(["key"])
    ]
    return np.concatenate([np.empty(0, np.int64), *found])
