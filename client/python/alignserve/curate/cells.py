"""Cells of similar sketches, and which of them can have a row within some distance of a row: exact pruning.

Each row belongs to the cell of the nearest centre. A row x that is nearer to its own centre a than to another
centre b lies at a distance of (|x - b|² - |x - a|²) / (2 |a - b|) from the plane between the two. All rows of
the cell of b lie beyond that plane, so none of them is nearer to x than that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alignserve.curate.sketches import Floats

_ROWS_PER_CELL = 512
_MAX_CELLS = 4096
_TRAINING_ROWS, _TRAINING_ROUNDS = 32, 6  # of k-means, the former for each cell
_BLOCK_ROWS = 4096
_MIN_GAP = 0.01  # of two centres; a plane between nearer ones is too uncertain in float32
_ROUNDING = 1e-3  # of a distance to a plane, generously


def cell_count(rows: int) -> int:
    """Returns how many cells pay for this number of rows."""
    return min(max(rows // _ROWS_PER_CELL, 1), _MAX_CELLS)


def training_rows(cells: int) -> int:
    """Returns how many rows suffice to find the centres of some cells."""
    return cells * _TRAINING_ROWS


class Cells:
    """Centres, found by k-means; the result of a search does not depend on where they are.

    Args:
        sample: (at least `count` rows, dimension): sketches.
        count: Number of cells.
    """

    def __init__(self, sample: Floats, count: int) -> None:
        self._centres = np.ascontiguousarray(sample[:: max(len(sample) // count, 1)][:count])
        self._measure()
        for _ in range(_TRAINING_ROUNDS if count > 1 else 0):
            cells = np.concatenate(
                [self.nearest(sample[i : i + _BLOCK_ROWS]) for i in range(0, len(sample), _BLOCK_ROWS)]
            )
            sizes = np.bincount(cells, minlength=len(self))
            sums = np.zeros(self._centres.shape)
            np.add.at(sums, cells, sample)
            self._centres[sizes > 0] = (sums[sizes > 0] / sizes[sizes > 0, None]).astype(np.float32)
            self._measure()

    def __len__(self) -> int:
        """Returns the number of cells."""
        return len(self._centres)

    def nearest(self, sketches: Floats) -> NDArray[np.int64]:
        """Returns the cell of each row: (rows,)."""
        return np.asarray(self._closeness(sketches).argmax(axis=1))

    def reachable(self, sketches: Floats, own: NDArray[np.int64], distance: float) -> NDArray[np.bool_]:
        """Returns which cells can have a row within a distance of each row, its own left out: (rows, cells).

        Args:
            sketches: (rows, dimension).
            own: (rows,): their cells.
            distance: Between sketches.
        """
        closeness = self._closeness(sketches)
        places = np.arange(len(own))
        margins = closeness[places, own][:, None] - closeness
        found: NDArray[np.bool_] = margins <= self._gaps[own] * np.float32(distance + _ROUNDING)
        found[places, own] = False
        return found

    def _closeness(self, sketches: Floats) -> Floats:
        """Returns half the squared length minus half the squared distance to each centre: (rows, cells)."""
        return np.asarray(sketches @ self._centres.T - self._halves)

    def _measure(self) -> None:
        squares = np.einsum("ij,ij->i", self._centres, self._centres)
        self._halves = squares / 2
        gaps = squares[:, None] + squares - 2 * (self._centres @ self._centres.T)
        self._gaps = np.maximum(np.sqrt(np.maximum(gaps, 0)), np.float32(_MIN_GAP))  # (cells, cells)
