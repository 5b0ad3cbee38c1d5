"""Rows that look alike by their vectors: the exact search against the plainest one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from alignserve.curate import cells
from alignserve.curate.cells import Cells
from alignserve.curate.near_duplicates import NearDuplicates
from alignserve.curate.sketches import Sketches
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def _unit(vectors: NDArray[np.float64]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _groups(rows: int, dimension: int = 16, seed: int = 0) -> Floats:
    """Returns vectors, many of which are close to some others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(rows // 4, dimension))
    noise = rng.normal(scale=0.15, size=(rows, dimension)) * rng.random((rows, 1))
    return _unit(centres[rng.integers(0, len(centres), rows)] + noise)


def _expected(vectors: Floats, bound: float, is_in: NDArray[np.bool_] | None = None) -> list[bool]:
    """Decides row by row, in the plainest way."""
    exact = vectors.astype(np.float64)
    goes: list[bool] = []
    stayed: list[int] = []
    for row, vector in enumerate(exact):
        counts = is_in is None or bool(is_in[row])
        is_near = np.round((exact[stayed] * vector).sum(axis=1), 6) >= bound
        goes.append(counts and bool(is_near.any()))
        if counts and not goes[-1]:
            stayed.append(row)
    return goes


def _found(search: NearDuplicates, is_in: NDArray[np.bool_] | None = None) -> list[bool]:
    return [bool(goes) for block in search.blocks(is_in) for goes in block]


@pytest.fixture
def many_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs are divided into cells as large ones are."""
    monkeypatch.setattr(cells, "_ROWS_PER_CELL", 12)


@pytest.mark.usefixtures("many_cells")
@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("dimension", [16, 160])
def test_it_decides_as_row_by_row(block_rows: int, dimension: int, tmp_path: Path) -> None:
    """Whatever the size of the blocks; with vectors that are shorter and longer than a sketch."""
    vectors = _groups(240, dimension)
    is_in = np.random.default_rng(1).random(240) > 0.2
    search = NearDuplicates(vectors, 0.95, tmp_path, block_rows=block_rows)

    found = _found(search, is_in)

    assert found == _expected(vectors, 0.95, is_in)
    assert 20 < sum(found) < 180
    assert search.statistics.cells == np.count_nonzero(is_in) // 12


@pytest.mark.usefixtures("many_cells")
@pytest.mark.parametrize("bound", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999, 1])
def test_every_bound_is_exact(bound: float, tmp_path: Path) -> None:
    """Also where almost all rows resemble each other, and where only equal ones do."""
    vectors = _groups(300, 80)
    vectors[200:220] = vectors[:20]

    assert _found(NearDuplicates(vectors, bound, tmp_path, block_rows=50)) == _expected(vectors, bound)


@pytest.mark.usefixtures("many_cells")
@pytest.mark.parametrize("seed", range(12))
def test_cosines_at_the_bound_are_decided_exactly(seed: int, tmp_path: Path) -> None:
    """Pairs are planted within a hundred-thousandth of the bound, on both sides of it."""
    rng = np.random.default_rng(seed)
    left = _unit(rng.normal(size=(150, 96))).astype(np.float64)
    other = rng.normal(size=left.shape)
    other -= (other * left).sum(axis=1, keepdims=True) * left
    cosine = 0.95 + rng.choice([-1e-5, -2e-6, 0, 2e-6, 1e-5], size=(150, 1))
    right = cosine * left + np.sqrt(1 - cosine**2) * _unit(other)
    vectors = _unit(np.concatenate([left, right]))

    found = _found(NearDuplicates(vectors, 0.95, tmp_path, block_rows=64))

    assert found == _expected(vectors, 0.95)
    assert 50 < sum(found) < 130


@pytest.mark.usefixtures("many_cells")
def test_equal_rows_are_compared_with_the_one_that_stays(tmp_path: Path) -> None:
    """So a dataset of one picture does not take the square of its rows."""
    search = NearDuplicates(np.tile(_unit(np.ones((1, 640))), (1000, 1)), 1, tmp_path)

    assert _found(search) == [False] + [True] * 999
    assert search.statistics.cosines < 150 * 256


def test_a_row_that_goes_takes_no_other_with_it(tmp_path: Path) -> None:
    """Of a chain of rows, each close to the next, every other one stays."""
    angles = np.deg2rad([0, 10, 20, 30, 40])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    found = _found(NearDuplicates(vectors, float(np.cos(np.deg2rad(15))), tmp_path))

    assert found == [False, True, False, True, False]


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("is_in", [True, False])
def test_no_row_and_one_row_stay(rows: int, is_in: bool, tmp_path: Path) -> None:
    """Whether or not it counts."""
    search = NearDuplicates(_groups(8)[:rows], 0.95, tmp_path)

    assert _found(search, np.full(rows, is_in)) == [False] * rows


@pytest.mark.usefixtures("many_cells")
def test_pairs_that_are_far_apart_are_not_compared(tmp_path: Path) -> None:
    """Cells rule out many pairs, and bounds almost all others."""
    search = NearDuplicates(_groups(2000, 24), 0.99, tmp_path)

    stayed = 2000 - sum(_found(search))

    assert search.statistics.bounds < 0.6 * stayed**2 / 2 + 4096 * 256
    assert search.statistics.cosines < 2000


@pytest.mark.parametrize("bound", [0, -0.5, 1.1, float("nan")])
def test_a_bound_must_be_a_cosine(bound: float, tmp_path: Path) -> None:
    """0.95, for example."""
    with pytest.raises(ValueError, match="is not above 0 and at most 1"):
        NearDuplicates(_groups(8), bound, tmp_path)


def test_a_sketch_bounds_the_cosine() -> None:
    """From above, for any two rows; sketches have length 1."""
    vectors = _groups(200, 160)
    sketches = Sketches(vectors, np.arange(0, 200, 3), 20)

    found = sketches.of(vectors)

    assert (found @ found.T >= vectors @ vectors.T - 1e-5).all()
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


def test_no_cell_with_a_near_row_is_left_out() -> None:
    """Each row within the distance is in the own cell, or in a reachable one."""
    points = _groups(600, 12)
    cells_ = Cells(points, 40)
    own = cells_.nearest(points)

    reachable = cells_.reachable(points, own, 0.4)
    distances = np.linalg.norm(points[:, None] - points, axis=2)

    near, other = np.nonzero(distances <= 0.4)
    assert (reachable[near, own[other]] | (own[near] == own[other])).all()
    assert reachable.mean() < 0.5
