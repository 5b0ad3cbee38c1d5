"""Fits a compaction to a folder's own vectors, and measures the recall that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignserve.search.compact import CompactDtype, Compaction
from alignserve.search.recall import Recall, RecallMeter
from alignserve.search.rotation import RotationKind, fit_itq, fit_pca, identity
from alignserve.search.vectors import (
    COLUMNS,
    VectorFolder,
    VectorsError,
    normalized,
    sample_rows,
    vectors_of,
)

_MAX_HELD_OUT = 0.25  # of the sampled rows


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Vectors that nothing was fitted to, as queries.

    Attributes:
        vectors: (n, dim) float32, of length 1.
        rows: (n,) numbers of their rows in the folder that is searched; -1 if they are not from there.
    """

    vectors: NDArray[np.float32]
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Vectors drawn at random, in two parts without a row in common, by modality."""

    fitted: Mapping[str, NDArray[np.float32]]  # (n, dim) each, of length 1
    held_out: Mapping[str, HeldOut]


def draw(folder: VectorFolder, texts: VectorFolder | None, *, count: int, queries: int, seed: int) -> Sample:
    """Draws a sample of a folder, and of the texts that are searched for in it.

    Args:
        folder: The vectors.
        texts: More vectors of texts, for a folder that has none, or whose texts are unlike the queries.
        count: Number of rows to fit to.
        queries: Number of rows to hold out; at most a quarter of the sample.
        seed: Of the choice.

    Raises:
        VectorsError: The texts are of another model.
    """
    fitted, held_out = _parts(folder, folder.modalities, count, queries, seed, is_searched=True)
    if texts is not None:
        _check_same_model(folder, texts)
        more_fitted, more_held_out = _parts(texts, ("text",), count, queries, seed, is_searched=False)
        fitted.update(more_fitted)
        held_out.update(more_held_out)
    return Sample(fitted, held_out)


def fit(
    sample: Sample,
    fingerprint: str,
    dtype: CompactDtype,
    *,
    dimensions: int | None,
    rotation: RotationKind,
    seed: int,
) -> Compaction:
    """Fits a compaction to a sample.

    Args:
        sample: As drawn.
        fingerprint: Of the model.
        dtype: Of the compact vectors.
        dimensions: To keep; `None` for all.
        rotation: `none` keeps all dimensions.
        seed: Of ITQ's start.

    Raises:
        ValueError: The dimensions do not fit the vectors, the rotation or the data type.
    """
    size = next(iter(sample.fitted.values())).shape[1]
    kept = dimensions or size
    if not 0 < kept <= size:
        raise ValueError(f"--dimensions {kept} is not from 1 to {size}, the dimension of the vectors")
    if dtype == "binary" and kept % 8:
        raise ValueError(f"--dimensions {kept} is not a multiple of 8, as binary vectors need")
    if rotation == "none":
        if kept < size:
            raise ValueError("--dimensions needs --rotation pca or itq")
        return Compaction(dtype, identity(size), fingerprint)
    if rotation == "itq":
        return Compaction(dtype, fit_itq(sample.fitted, kept, seed=seed), fingerprint)
    return Compaction(dtype, fit_pca(sample.fitted, kept), fingerprint)


@dataclass(frozen=True, slots=True)
class Loss:
    """What searching compact vectors still finds of what exact search of the originals finds.

    Attributes:
        recall: If queries are made compact too.
        float_query: If queries of binary vectors are only rotated; `None` for other data types.
    """

    recall: Recall
    float_query: Recall | None

    def as_data(self) -> dict[str, float | int | None]:
        """Returns the figures as a manifest has them."""
        if self.float_query is None:
            return self.recall.as_data()
        more = self.float_query.as_data()
        return {
            **self.recall.as_data(),
            "recall_at_10_float_query": more["recall_at_10"],
            "recall_at_10_float_query_reranked": more["recall_at_10_reranked"],
        }


def measure(folder: VectorFolder, compaction: Compaction, held_out: Mapping[str, HeldOut]) -> dict[str, Loss]:
    """Returns the recall of searching all rows as compact vectors, in constant memory.

    Returns:
        By direction, such as `text_to_image`.
    """
    is_binary = compaction.dtype == "binary"
    compact_queries = {
        name: compaction.decode(compaction.encode(held.vectors)) for name, held in held_out.items()
    }
    rotated_queries = {name: compaction.rotate(held.vectors) for name, held in held_out.items()}
    directions = [(name, target) for name in held_out for target in folder.modalities]
    meters = {each: _meter(held_out, *each) for each in directions}
    float_meters = {each: _meter(held_out, *each) for each in directions if is_binary}
    for first, batch in folder.batches([COLUMNS[name] for name in folder.modalities]):
        for target in folder.modalities:
            is_there, stored = vectors_of(batch.column(COLUMNS[target]))
            numbers = first + np.flatnonzero(is_there)
            originals = normalized(stored)
            compact = compaction.decode(compaction.encode(originals)).T
            for name, held in held_out.items():
                exact = held.vectors @ originals.T
                meters[name, target].add(exact, compact_queries[name] @ compact, numbers)
                if is_binary:
                    float_meters[name, target].add(exact, rotated_queries[name] @ compact, numbers)
    return {
        f"{name}_to_{target}": Loss(
            meters[name, target].result(), float_meters[name, target].result() if is_binary else None
        )
        for name, target in directions
    }


def _meter(held_out: Mapping[str, HeldOut], name: str, target: str) -> RecallMeter:
    held = held_out[name]
    return RecallMeter(len(held.vectors), held.rows if name == target else None)


def _parts(
    folder: VectorFolder,
    modalities: tuple[str, ...],
    count: int,
    queries: int,
    seed: int,
    *,
    is_searched: bool,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, HeldOut]]:
    folder.require_originals()
    numbers = sample_rows(folder.rows, count + queries, seed)
    held_count = min(queries, int(len(numbers) * _MAX_HELD_OUT))
    is_held = np.zeros(len(numbers), bool)
    is_held[np.random.default_rng(seed).permutation(len(numbers))[:held_count]] = True
    table = folder.take(numbers, [COLUMNS[name] for name in modalities])
    fitted, held_out = {}, {}
    for name in modalities:
        is_there, stored = vectors_of(table.column(COLUMNS[name]))
        vectors, is_query = normalized(stored), is_held[is_there]
        if not vectors.size:
            continue
        fitted[name] = vectors[~is_query]
        rows = numbers[is_there][is_query] if is_searched else np.full(is_query.sum(), -1, np.int64)
        held_out[name] = HeldOut(vectors[is_query], rows)
    if not fitted:
        raise VectorsError(f"{folder.path}: there are no vectors in it")
    return fitted, held_out


def _check_same_model(folder: VectorFolder, texts: VectorFolder) -> None:
    if "text" not in texts.modalities:
        raise VectorsError(f"{texts.path}: no column {COLUMNS['text']}")
    if texts.fingerprint != folder.fingerprint:
        raise VectorsError(
            f"{texts.path} has fingerprint {texts.fingerprint}, and {folder.path} {folder.fingerprint}: "
            "vectors of different models cannot be compared; embed the texts with the folder's model"
        )
