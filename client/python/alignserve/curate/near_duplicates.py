"""Rows that look alike by their embeddings: an exact search that looks at few of the pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignserve.curate.cells import Cells, cell_count, training_rows
from alignserve.curate.sketches import Floats, Sketches, evenly

__all__ = ["NearDuplicates", "SearchStatistics", "check_cosine"]

_BLOCK_ROWS = 4096
_GROUP_ROWS = 256  # of a block, that are compared with each other
_PAIRS = 2048  # whose vectors are in memory at once
_TILE = 1 << 23  # pairs of which bounds are in memory at once
_DECIMALS = 6  # of a cosine; float32 has no more
_ROUNDING = 1e-4  # of a bound of a cosine, generously

Rows = NDArray[np.int64]


@dataclass(slots=True)
class SearchStatistics:
    """What a search took.

    Attributes:
        is_exact: Whether it finds every pair; always.
        rows: That were compared.
        cells: In which they were grouped.
        bounds: Pairs of which a bound was computed; all others were ruled out by their cells.
        cosines: Pairs of which the cosine was computed.
    """

    is_exact: bool = True
    rows: int = 0
    cells: int = 0
    bounds: int = 0
    cosines: int = 0


class NearDuplicates:
    """Rows whose vector is close to that of an earlier row that stays.

    Rows are decided in order: a row goes if its cosine with an earlier row that stayed, rounded to six
    decimals, is at least the bound. So each row that goes resembles one that stays, and no two rows that stay
    resemble each other.

    The search is exact. A row is only compared with the cells that can have a row so near (`Cells`), there by
    sketches, whose product is an upper bound of the cosine (`Sketches`), and by the vectors themselves if the
    bound allows it. The higher the least cosine, the fewer pairs are left.
    """

    def __init__(
        self, vectors: Floats, min_cosine: float, folder: Path, *, block_rows: int = _BLOCK_ROWS
    ) -> None:
        """Looks at no vector yet.

        Args:
            vectors: (rows, dim), L2-normalized, in the order of the rows; may be a memory map.
            min_cosine: Above 0, at most 1.
            folder: For files of up to 272 bytes a row, which are mapped into memory.
            block_rows: How many rows are decided at a time.

        Raises:
            ValueError: The bound is not a cosine that makes sense.
        """
        self.statistics = SearchStatistics()
        self._vectors = vectors
        self._min_cosine = check_cosine(min_cosine)
        self._folder = folder
        self._block_rows = block_rows

    def blocks(self, is_in: NDArray[np.bool_] | None = None) -> Iterator[NDArray[np.bool_]]:
        """Yields, block by block, whether each row goes: (block,).

        Args:
            is_in: (rows,), whether a row counts; other rows resemble no row, and no row resembles them.
        """
        count = len(self._vectors)
        counted = np.arange(count) if is_in is None else np.flatnonzero(is_in)
        self.statistics.rows = len(counted)
        if not len(counted):
            if count:
                yield np.zeros(count, bool)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        sketches = Sketches(self._vectors, counted)
        cells = self._cells(sketches, counted)
        stayed = _Stayed(self._folder, self._assigned(sketches, cells, counted), sketches.dimension)
        self.statistics.cells = len(cells)
        for start in range(0, count, self._block_rows):
            end = min(start + self._block_rows, count)
            low, high = np.searchsorted(counted, (start, end))
            rows = counted[low:high]
            goes = np.zeros(end - start, bool)
            if len(rows):
                block = _Block(rows, sketches.of(self._vectors[rows]), stayed.cell_of[low:high])
                goes[rows - start] = self._decide(block, cells, stayed)
            yield goes

    def _cells(self, sketches: Sketches, counted: Rows) -> Cells:
        count = cell_count(len(counted))
        return Cells(sketches.of(self._vectors[evenly(counted, training_rows(count))]), count)

    def _assigned(self, sketches: Sketches, cells: Cells, counted: Rows) -> NDArray[np.int64]:
        """Returns the cell of each row that counts, in a file."""
        found = np.memmap(self._folder / "cells", np.int64, "w+", shape=(len(counted),))
        for start in range(0, len(counted), self._block_rows):
            rows = counted[start : start + self._block_rows]
            found[start : start + len(rows)] = cells.nearest(sketches.of(self._vectors[rows]))
        return found

    def _decide(self, block: _Block, cells: Cells, stayed: _Stayed) -> NDArray[np.bool_]:
        goes = np.zeros(len(block.rows), bool)
        # Most near-duplicates are in the same cell, and need no look at others.
        for cell in np.unique(block.cells).tolist():
            self._compare(block, np.flatnonzero(block.cells == cell), stayed.of(cell), goes)
        open_ = np.flatnonzero(~goes)
        if len(cells) > 1:
            reach = math.sqrt(max(2 - 2 * self._min_cosine, 0) + 2 * _ROUNDING)
            can_be_near = cells.reachable(block.sketches[open_], block.cells[open_], reach)
            for cell in np.flatnonzero(can_be_near.any(axis=0)).tolist():
                self._compare(block, open_[can_be_near[:, cell]], stayed.of(cell), goes)
        self._decide_among_themselves(block, goes)
        stays = np.flatnonzero(~goes)
        stayed.add(block.rows[stays], block.sketches[stays], block.cells[stays])
        return goes

    def _decide_among_themselves(self, block: _Block, goes: NDArray[np.bool_]) -> None:
        """Compares the rows of a block that resemble no row of earlier blocks."""
        open_ = np.flatnonzero(~goes)
        for start in range(0, len(open_), _GROUP_ROWS):
            group = open_[start : start + _GROUP_ROWS]
            before = open_[:start][~goes[open_[:start]]]
            self._compare(block, group, (block.rows[before], block.sketches[before]), goes)
            group = group[~goes[group]]
            later, earlier = self._candidates(block.sketches[group], block.sketches[group])
            later, earlier = later[later > earlier], earlier[later > earlier]
            is_near = self._are_near(block.rows[group[later]], block.rows[group[earlier]])
            for row, other in zip(group[later[is_near]], group[earlier[is_near]], strict=True):
                goes[row] |= not goes[other]  # by ascending rows: the other one is decided

    def _compare(
        self, block: _Block, places: Rows, others: tuple[Rows, Floats], goes: NDArray[np.bool_]
    ) -> None:
        """Finds which rows of a block resemble others, which all stay; rows that go already are left out."""
        places = places[~goes[places]]
        rows, sketches = others
        if not (len(places) and len(rows)):
            return
        step = max(_TILE // len(places), 1)
        for start in range(0, len(rows), step):
            found, near = self._candidates(block.sketches[places], sketches[start : start + step])
            found = places[found]
            for first in range(0, len(found), _PAIRS):
                pairs = slice(first, first + _PAIRS)
                is_open = ~goes[found[pairs]]
                left, right = found[pairs][is_open], rows[start + near[pairs][is_open]]
                goes[left[self._are_near(block.rows[left], right)]] = True

    def _candidates(self, sketches: Floats, others: Floats) -> tuple[Rows, Rows]:
        """Returns which pairs can be near: (pairs,) places of each side, in the order of the first."""
        self.statistics.bounds += len(sketches) * len(others)
        is_possible = sketches @ others.T >= np.float32(self._min_cosine - _ROUNDING)
        # 40 times as fast as nonzero of two dimensions, for the few that are
        left, right = np.divmod(np.flatnonzero(is_possible), len(others))
        return left, right

    def _are_near(self, rows: Rows, others: Rows) -> NDArray[np.bool_]:
        """Returns whether pairs of rows resemble each other: the same for a pair, whichever pairs are asked
        for together.
        """
        self.statistics.cosines += len(rows)
        found = np.zeros(len(rows), bool)
        for start in range(0, len(rows), _PAIRS):
            pairs = slice(start, start + _PAIRS)
            left, right = (self._vectors[some[pairs]].astype(np.float64) for some in (rows, others))
            cosines = (left * right).sum(axis=1)
            found[pairs] = np.round(cosines, _DECIMALS) >= self._min_cosine
        return found


@dataclass(frozen=True, slots=True)
class _Block:
    """Some rows that are decided together: (rows,), (rows, dimension), (rows,)."""

    rows: Rows
    sketches: Floats
    cells: NDArray[np.int64]


class _Stayed:
    """The rows that have stayed so far and their sketches, those of a cell together, in files."""

    def __init__(self, folder: Path, cell_of: NDArray[np.int64], dimension: int) -> None:
        self.cell_of = cell_of
        sizes = np.bincount(cell_of)
        self._starts = np.cumsum(sizes) - sizes
        self._filled = np.zeros(len(sizes), np.int64)
        self._rows = np.memmap(folder / "rows", np.int64, "w+", shape=(len(cell_of),))
        self._sketches = np.memmap(folder / "sketches", np.float32, "w+", shape=(len(cell_of), dimension))

    def of(self, cell: int) -> tuple[Rows, Floats]:
        """Returns the rows of a cell, and their sketches."""
        if cell >= len(self._starts):
            return self._rows[:0], self._sketches[:0]
        part = slice(self._starts[cell], self._starts[cell] + self._filled[cell])
        return self._rows[part], self._sketches[part]

    def add(self, rows: Rows, sketches: Floats, cells: NDArray[np.int64]) -> None:
        """Adds rows."""
        order = np.argsort(cells, kind="stable")
        ordered = cells[order]
        is_first = np.append(True, ordered[1:] != ordered[:-1]) if len(ordered) else np.empty(0, bool)
        firsts = np.flatnonzero(is_first)
        counts = np.diff(np.append(firsts, len(ordered)))
        places = (
            self._starts[ordered]
            + self._filled[ordered]
            + np.arange(len(ordered))
            - np.repeat(firsts, counts)
        )
        self._rows[places] = rows[order]
        self._sketches[places] = sketches[order]
        self._filled[ordered[firsts]] += counts


def check_cosine(value: float) -> float:
    """Returns a least cosine.

    Raises:
        ValueError: It is not above 0 and at most 1.
    """
    if not 0 < value <= 1:
        raise ValueError(f"a cosine of {value:g} is not above 0 and at most 1, such as 0.95")
    return value
