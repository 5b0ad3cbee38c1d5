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
        VectorsError: They have no keys in common.
    """
    new_numbers = sample_rows(new.rows, count, seed)
    keys = new.take(new_numbers, ["key"]).column("key").to_pylist()
    by_key = dict(zip(keys, new_numbers.tolist(), strict=True))
    old_of_new = {by_key[key]: number for key, number in _numbers_of(old, list(by_key))}
    if not old_of_new:
        raise VectorsError(
            f"{new.path} and {old.path} have no keys in common; embed a sample of the same rows"
        )
    return {
        name: _paired(
            _by_number(old, list(old_of_new.values()), name),
            _by_number(new, list(old_of_new), name),
            old_of_new,
        )
        for name in _shared(old, new.modalities, str(new.path))
    }


def pairs_by_embedding(
    old: VectorFolder, numbers: NDArray[np.int64], embedded: Iterable[Embedded]
) -> tuple[dict[str, Pairs], list[Embedded]]:
    """Pairs the rows of a sample with vectors that the new model has just made of them.

    Returns:
        The pairs by modality, and what could not be embedded.
    """
    new: dict[str, dict[int, NDArray[np.float32]]] = {}
    failed = []
    for each in embedded:
        if each.vector is None:
            failed.append(each)
        else:
            new.setdefault(each.modality, {})[each.number] = normalized(each.vector)
    same = {int(number): int(number) for number in numbers}
    pairs = {
        name: _paired(_by_number(old, numbers.tolist(), name), new[name], same)
        for name in _shared(old, tuple(new), "the sample that was embedded")
    }
    return pairs, failed


def _shared(old: VectorFolder, modalities: tuple[str, ...], where: str) -> tuple[str, ...]:
    missing = [name for name in old.modalities if name not in modalities]
    if missing:
        raise VectorsError(
            f"{old.path} has {COLUMNS[missing[0]]}, but {where} does not; both are needed to map it"
        )
    return old.modalities


def _paired(
    old: dict[int, NDArray[np.float32]], new: dict[int, NDArray[np.float32]], old_of_new: dict[int, int]
) -> Pairs:
    both = sorted(number for number, other in old_of_new.items() if number in new and other in old)
    if not both:
        raise VectorsError("no row has both an old and a new vector; take a larger sample")
    return Pairs(
        np.stack([old[old_of_new[number]] for number in both]), np.stack([new[number] for number in both])
    )


def _by_number(folder: VectorFolder, numbers: list[int], modality: str) -> dict[int, NDArray[np.float32]]:
    ordered = np.sort(np.array(numbers, np.int64))
    is_there, stored = vectors_of(folder.take(ordered, [COLUMNS[modality]]).column(0))
    return dict(zip(ordered[is_there].tolist(), normalized(stored), strict=True))


def _numbers_of(folder: VectorFolder, keys: list[str]) -> Iterable[tuple[str, int]]:
    wanted = pa.array(keys, pa.string())
    for first, batch in folder.batches(["key"]):
        found = pc.is_in(batch.column(0), value_set=wanted).to_numpy(zero_copy_only=False)
        for position in np.flatnonzero(found).tolist():
            yield batch.column(0)[position].as_py(), first + position
