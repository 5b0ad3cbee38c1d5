"""The space of vectors: of which model they are, and how they were made compact.

Vectors are compared within one space. What a server embeds, and vectors as a model made them, are taken into
the space of compact vectors of that model by the same rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alignserve.search.compact import FILE, Compaction
from alignserve.search.errors import OtherModelError
from alignserve.search.vectors import VectorFolder, VectorsError, normalized

if TYPE_CHECKING:
    from alignserve.search.store import Store

_QUANTIZED = ("int8", "binary")


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """A space of vectors.

    Attributes:
        fingerprint: Of the vectors: that of the model, with a suffix if they were rotated.
        model: Identifier of the model, for people.
        dimension: Number of elements; for vectors of bits, of bits.
        compaction: How the model's vectors were made compact, or `None`.
    """

    fingerprint: str
    model: str
    dimension: int
    compaction: Compaction | None = None

    @property
    def model_fingerprint(self) -> str:
        """Returns the fingerprint of the model."""
        return self.compaction.model_fingerprint if self.compaction else self.fingerprint

    @property
    def model_dimension(self) -> int:
        """Returns the number of elements of the model's vectors."""
        return len(self.compaction.rotation.matrix) if self.compaction else self.dimension

    @property
    def is_bits(self) -> bool:
        """Returns whether only the signs of elements are kept."""
        return self.compaction is not None and self.compaction.dtype == "binary"

    def takes(self, other: Space) -> bool:
        """Returns whether vectors of another space can be taken into this one.

        They are of this space, or as the model made them. Of bits, no other form can be made.
        """
        if other.is_bits and not self.is_bits:
            return False
        is_same = (other.fingerprint, other.dimension) == (self.fingerprint, self.dimension)
        is_original = (other.fingerprint, other.dimension) == (self.model_fingerprint, self.model_dimension)
        return is_same or (is_original and not other.is_bits)

    def check_takes(self, other: Space, name: str) -> None:
        """Raises `OtherModelError` if vectors of another space cannot be taken into this one, `name`."""
        if self.takes(other):
            return
        if other.is_bits and other.model_fingerprint == self.model_fingerprint:
            raise OtherModelError(
                f"{name} cannot take these bits: it has vectors of numbers, or of other bits; index the bits "
                "into a new store"
            )
        if other.fingerprint == self.fingerprint:
            raise OtherModelError(
                f"{name} has vectors of {self.dimension} numbers, and the source has {other.dimension} under "
                f"the same fingerprint {self.fingerprint}; index a new store"
            )
        raise OtherModelError(
            f"{name} has embeddings of model {self.model!r}, fingerprint {self.fingerprint}, not "
            f"{other.fingerprint}; use a server of that model, or index a new store"
        )

    def taken(self, vectors: NDArray[np.float32], fingerprint: str) -> NDArray[np.float32]:
        """Returns vectors in this space, (n, dimension) of length 1.

        Args:
            vectors: (n, dimension) of this space, or (n, model_dimension) as the model made them.
            fingerprint: Of the vectors.
        """
        if self.compaction is None or fingerprint == self.fingerprint:
            return normalized(vectors)
        return normalized(self.compaction.rotate(vectors))

    def of_query(self, embedded: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns a weighted sum of the model's vectors, (model_dimension,), in this space; not normalized.

        A rotation of a sum is the sum of the rotated terms.
        """
        return self.compaction.rotation.apply(embedded) if self.compaction else embedded


def common_space(spaces: Sequence[Space]) -> Space:
    """Returns the one of some spaces that takes the vectors of all; a compact one only if no other does.

    Raises:
        ValueError: They are of different models.
    """
    for space in sorted(spaces, key=lambda one: one.compaction is not None):
        if all(map(space.takes, spaces)):
            return space
    fingerprints = ", ".join(sorted({space.fingerprint for space in spaces}))
    raise ValueError(f"the sources are of different models ({fingerprints}); index them into several stores")


def space_of_store(store: Store) -> Space:
    """Returns the space of a store's vectors."""
    return Space(store.fingerprint, store.model, store.embedding_dimension, store.compaction)


def column_type(compaction: Compaction) -> pa.DataType:
    """Returns the type of a column of compact vectors."""
    empty = compaction.quantize(np.zeros((0, compaction.dimensions), np.float32))
    return pa.list_(pa.from_numpy_dtype(empty.dtype), empty.shape[1])


def compaction_of(folder: VectorFolder) -> Compaction | None:
    """Returns how the vectors of a folder were made compact, or `None` if they are the model's.

    Raises:
        VectorsError: They are rotated or quantized, and the file that says how is missing, or another's.
    """
    home = folder.path if folder.path.is_dir() else folder.path.parent
    is_needed = "+" in folder.fingerprint or folder.dtype in _QUANTIZED
    if not (home / FILE).is_file():
        if is_needed:
            raise VectorsError(
                f"{folder.path} has compact vectors ({folder.dtype}, fingerprint {folder.fingerprint}), and "
                f"{home / FILE} is missing, without which they cannot be compared with queries; restore it, "
                "or make the folder again with alignserve compact-vectors"
            )
        return None
    found = Compaction.load(home)
    if (found.fingerprint, found.dtype) == (folder.fingerprint, folder.dtype):
        return found
    if is_needed or folder.path.is_dir():
        raise VectorsError(
            f"{home / FILE} has fingerprint {found.fingerprint} in {found.dtype}, and the vectors of "
            f"{folder.path} have {folder.fingerprint} in {folder.dtype}: it belongs to other vectors"
        )
    return None
