"""How a table keeps the elements of its vectors: as float32, as float16, or only their signs as bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alignserve.search.compact import Compaction
from alignserve.search.vectors import normalized


@dataclass(frozen=True, slots=True)
class Elements:
    """The form of a table's vectors.

    Attributes:
        dtype: Of the elements; of bits, eight in each byte.
        dimension: Number of elements.
    """

    dtype: Literal["float32", "float16", "bits"]
    dimension: int

    @classmethod
    def of(cls, dimension: int, compaction: Compaction | None) -> Elements:
        """Returns the smallest form that the engine searches and that loses nothing.

        LanceDB has no vectors of int8: they become float16, which tells their 255 steps apart.
        """
        if compaction is None or compaction.dtype == "float32":
            return cls("float32", dimension)
        return cls("bits" if compaction.dtype == "binary" else "float16", dimension)

    @property
    def is_bits(self) -> bool:
        """Returns whether vectors are compared by Hamming distance."""
        return self.dtype == "bits"

    @property
    def type(self) -> pa.DataType:
        """Returns the type of the column."""
        if self.is_bits:
            return pa.list_(pa.uint8(), self.dimension // 8)
        return pa.list_(pa.from_numpy_dtype(np.dtype(self.dtype)), self.dimension)

    def kept(self, units: NDArray[np.float32]) -> NDArray[np.generic]:
        """Returns vectors as the table has them: (n, dimension), or (n, dimension / 8) of bits."""
        return np.packbits(units > 0, axis=1) if self.is_bits else units.astype(self.dtype)

    def column(self, units: NDArray[np.float32]) -> pa.Array:
        """Returns (n, dimension) vectors of length 1 as a column."""
        kept = self.kept(units)
        return pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), kept.shape[1])

    def units(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
        """Returns the vectors of a column, (n, dimension) of length 1."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        kept = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.type.list_size)
        if not self.is_bits:
            return kept if self.dtype == "float32" else normalized(kept)
        return normalized(np.unpackbits(kept, axis=1).astype(np.float32) * 2 - 1)
