"""Compares ways to rotate vectors: one rotation for images and texts or one each, and how they are centred.

    python -m tests.load.rotations vectors/

prints recall@10 of text → image and image → image for each, without and with re-ranking of 100 candidates.
The folder has vectors of images and of texts, as `alignserve embed-dataset` writes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from alignserve.search.compacting import HeldOut, Sample, draw
from alignserve.search.recall import Recall, RecallMeter
from alignserve.search.rotation import fit_itq, fit_pca
from alignserve.search.vectors import COLUMNS, VectorFolder, normalized, vectors_of
from numpy.typing import NDArray

_MODALITIES = ("text", "image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--dimensions", type=int, default=256)
    args = parser.parse_args()
    folder = VectorFolder.open(args.folder)
    sample = draw(folder, None, count=folder.rows, queries=args.queries, seed=0)
    print(f"{folder.rows} rows, {args.queries} queries, gap {_gap(sample):.3f}")
    print(f"{'':58} text → image    image → image")
    for name, rotations in _fitted(sample, args.dimensions):
        for is_bits in (False, True):
            recalls = _recalls(folder, sample, rotations, is_bits=is_bits)
            figures = "   ".join(f"{one.at_10:.3f} ({one.reranked_at_10:.3f})" for one in recalls)
            print(f"{name:42} {'signs' if is_bits else 'floats':8} {figures}", flush=True)


Rotated = tuple[NDArray[np.float32], NDArray[np.float32]]  # a mean to subtract, and a matrix


def _fitted(sample: Sample, dimensions: int) -> Iterator[tuple[str, dict[str, Rotated]]]:
    """Yields rotations by modality, by name."""
    both = sample.fitted
    for centring in ("none", "shared", "by modality"):
        means = {kind: _centre(both, kind, centring) for kind in _MODALITIES}
        centred = {kind: both[kind] - means[kind] for kind in _MODALITIES}
        for fit in (fit_pca, fit_itq):
            matrix = fit(centred, dimensions).matrix
            name = f"{fit.__name__[4:]} {dimensions}, together, centred {centring}"
            yield name, {kind: (means[kind], matrix) for kind in _MODALITIES}
    alone = {kind: (_nothing(both), fit_pca({kind: both[kind]}, dimensions).matrix) for kind in _MODALITIES}
    for kind in _MODALITIES:
        yield f"pca {dimensions}, fitted to {kind}s only", dict.fromkeys(_MODALITIES, alone[kind])
    yield f"pca {dimensions}, apart", alone


def _centre(vectors: Mapping[str, NDArray[np.float32]], kind: str, centring: str) -> NDArray[np.float32]:
    means = {name: rows.mean(axis=0) for name, rows in vectors.items()}
    if centring == "none":
        return _nothing(vectors)
    return means[kind] if centring == "by modality" else (means["image"] + means["text"]) / 2


def _nothing(vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.zeros(vectors["image"].shape[1], np.float32)


def _gap(sample: Sample) -> float:
    return float(np.linalg.norm(sample.fitted["image"].mean(axis=0) - sample.fitted["text"].mean(axis=0)))


def _recalls(
    folder: VectorFolder, sample: Sample, rotations: dict[str, Rotated], *, is_bits: bool
) -> list[Recall]:
    def mapped(vectors: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
        mean, matrix = rotations[kind]
        rows = (vectors - mean) @ matrix
        return normalized(np.sign(rows) if is_bits else rows)

    def own_rows(kind: str, held: HeldOut) -> NDArray[np.int64]:
        return held.rows if kind == "image" else np.full(len(held.rows), -1, np.int64)

    held_out = {kind: sample.held_out[kind] for kind in _MODALITIES}
    meters = {kind: RecallMeter(len(held.vectors), own_rows(kind, held)) for kind, held in held_out.items()}
    for first, batch in folder.batches([COLUMNS["image"]]):
        is_there, stored = vectors_of(batch.column(0))
        exact = normalized(stored)
        compact = mapped(exact, "image")
        for kind, held in held_out.items():
            scores = mapped(held.vectors, kind) @ compact.T
            meters[kind].add(held.vectors @ exact.T, scores, first + np.flatnonzero(is_there))
    return [meters[kind].result() for kind in _MODALITIES]


if __name__ == "__main__":
    main()
