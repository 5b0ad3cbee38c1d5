"""Vectors in blocks: they grow without being copied, and are compared block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
IntArray: TypeAlias = NDArray[np.integer[Any]]

BLOCK_ROWS = 1024
"""Rows compared at a time: a block of similarities has 8 MiB in double precision."""


class Vectors:
    """A growing (rows, dimension) matrix of float32.

    Args:
        dimension: Of each vector.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._blocks: list[NDArray[np.float32]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, vector: FloatArray) -> None:
        """Adds a row, (dimension,)."""
        place = self._count % BLOCK_ROWS
        if place == 0:
            self._blocks.append(np.empty((BLOCK_ROWS, self.dimension), np.float32))
        self._blocks[-1][place] = vector
        self._count += 1

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields the number of each block's first row, and the (rows, dimension) of the block, not copied."""
        for number, block in enumerate(self._blocks):
            start = number * BLOCK_ROWS
            yield start, block[: self._count - start]

    def take(self, rows: IntArray) -> NDArray[np.float32]:
        """Returns a copy of rows by their numbers, (len(rows), dimension)."""
        taken = np.empty((len(rows), self.dimension), np.float32)
        block_of = rows // BLOCK_ROWS
        for number in np.unique(block_of).tolist():
            is_here = block_of == number
            taken[is_here] = self._blocks[number][rows[is_here] % BLOCK_ROWS]
        return taken


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the (rows, other rows) similarities of vectors of length 1, as `Classify` computes them.

    In double precision and then rounded: in a float32 product the last digits depend on a row's position.
    """
    return (one.astype(np.float64) @ other.T.astype(np.float64)).astype(np.float32)
