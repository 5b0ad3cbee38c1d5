"""Compares stored vectors with what the server's model makes of the same inputs now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve.search.compact import Compaction
from alignserve.search.inputs import Embedded
from alignserve.search.space import compaction_of
from alignserve.search.vectors import COLUMNS, VectorFolder, VectorsError, normalized, vectors_of

_MAX_EXAMPLES = 5
_BOUNDS = {"int8": 0.99, "binary": 0.9}  # two bits in forty may differ where an element is about zero
_FLOAT_BOUND = 0.999  # runtimes and batches differ by less; other weights or preprocessing by more


@dataclass(frozen=True, slots=True)
class Drift:
    """Cosines of stored vectors and the same ones made again.

    Attributes:
        compared: Number of vectors.
        min: The lowest cosine.
        p1: The cosine that 1 % of the vectors do not reach.
        median: The median cosine.
        below: Number of vectors with a cosine below the bound.
    """

    compared: int
    min: float
    p1: float
    median: float
    below: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of a sample.

    Attributes:
        rows: Number of rows stored.
        sampled: Number of rows drawn.
        bound: Cosine that vectors of the same model reach.
        stored_fingerprint: Of the stored vectors.
        server_fingerprint: Of the server's model, with the same rotation if the stored vectors have one.
        mapped_from: Fingerprint of the model that the stored vectors were mapped from, or empty.
        drift: By modality.
        lost: Inputs that could not be embedded again, by reason.
        examples: Some of them, as keys and messages.
        drifted: Keys of the vectors of the lowest cosines below the bound.
    """

    rows: int
    sampled: int
    bound: float
    stored_fingerprint: str
    server_fingerprint: str
    mapped_from: str
    drift: Mapping[str, Drift]
    lost: Mapping[str, int]
    examples: tuple[str, ...]
    drifted: tuple[str, ...]

    @property
    def compared(self) -> int:
        """Returns the number of vectors compared."""
        return sum(drift.compared for drift in self.drift.values())

    @property
    def below(self) -> int:
        """Returns the number of vectors below the bound."""
        return sum(drift.below for drift in self.drift.values())

    @property
    def is_success(self) -> bool:
        """Returns whether every input could be embedded again, and gave the stored vector."""
        return bool(self.compared) and not self.below and not self.lost

    def as_data(self) -> dict[str, Any]:
        """Returns the figures as JSON."""
        return {
            "verdict": self.verdict,
            "rows": self.rows,
            "sampled": self.sampled,
            "fingerprints": {
                "stored": self.stored_fingerprint,
                "server": self.server_fingerprint,
                "equal": self.stored_fingerprint == self.server_fingerprint,
                "mapped_from": self.mapped_from,
            },
            "bound": self.bound,
            "drift": {
                name: {
                    "compared": drift.compared,
                    "min": drift.min,
                    "p1": drift.p1,
                    "median": drift.median,
                    "below_bound": drift.below,
                }
                for name, drift in self.drift.items()
            },
            "drifted_keys": list(self.drifted),
            "not_embedded_again": {"count": sum(self.lost.values()), "reasons": dict(self.lost)},
            "examples": list(self.examples),
        }

    @property
    def verdict(self) -> str:
        """Returns `same`, `drifted`, `incomplete` if only inputs are missing, or `nothing compared`."""
        if not self.compared:
            return "nothing compared"
        if self.below:
            return "drifted"
        return "incomplete" if self.lost else "same"


@dataclass(frozen=True, slots=True, eq=False)
class StoredSample:
    """Stored vectors that were drawn, and the form that new vectors must take to compare with them.

    Attributes:
        rows: Number of rows that are stored.
        drawn: Number of rows that were drawn.
        fingerprint: Of the stored vectors.
        vectors: (dim,) float32 of length 1, by key and modality.
        bound: Cosine that vectors of the same model reach.
        compaction: How they were made compact, or `None`.
        mapped_from: Fingerprint of the model that they were mapped from, or empty.
    """

    rows: int
    drawn: int
    fingerprint: str
    vectors: Mapping[tuple[str, str], NDArray[np.float32]]
    bound: float = _FLOAT_BOUND
    compaction: Compaction | None = None
    mapped_from: str = ""

    @classmethod
    def of(cls, folder: VectorFolder, numbers: NDArray[np.int64]) -> StoredSample:
        """Reads some rows of a folder.

        Raises:
            VectorsError: They are rotated or quantized, and what queries need is missing.
        """
        compaction = compaction_of(folder)
        table = folder.take(numbers, [COLUMNS[name] for name in folder.modalities])
        vectors: dict[tuple[str, str], NDArray[np.float32]] = {}
        for name in folder.modalities:
            is_there, stored = vectors_of(table.column(COLUMNS[name]))
            exact = compaction.decode(stored) if compaction else normalized(stored)
            keys = folder.keys(numbers[is_there])
            vectors.update(((key, name), vector) for key, vector in zip(keys, exact, strict=True))
        return cls(
            folder.rows,
            len(numbers),
            folder.fingerprint,
            vectors,
            _bound(folder),
            compaction,
            folder.mapped_from,
        )

    def server_fingerprint(self, model_fingerprint: str) -> str:
        """Returns the fingerprint that these vectors would have, had the server's model made them."""
        _, plus, rotation = self.fingerprint.partition("+")
        return f"{model_fingerprint}{plus}{rotation}"

    def cosine(self, key: str, modality: str, vector: NDArray[np.float32]) -> float:
        """Returns the cosine of a stored vector and the same one made again: (dim,).

        Raises:
            VectorsError: The server's model has another dimension.
        """
        stored = self.vectors[key, modality]
        wanted = len(self.compaction.rotation.matrix) if self.compaction else len(stored)
        if len(vector) != wanted:
            raise VectorsError(
                f"the stored vectors have {wanted} elements, and the server's {len(vector)}: "
                "it serves another model"
            )
        if self.compaction is None:
            return float(normalized(vector) @ stored)
        again = self.compaction.decode(self.compaction.encode(vector[None, :]))
        return float(again[0] @ stored)


def verify(
    stored: StoredSample,
    embedded: Iterable[Embedded],
    server_fingerprint: str,
    *,
    bound: float | None = None,
) -> Verification:
    """Compares stored vectors with new ones.

    Args:
        stored: The stored vectors.
        embedded: The new vectors, in any order.
        server_fingerprint: Of the model that makes them.
        bound: Lowest cosine of equal vectors; by default that of the stored ones.

    Raises:
        VectorsError: The vectors cannot be compared.
        AlignserveError: The server failed.
    """
    limit = stored.bound if bound is None else bound
    cosines: dict[str, list[tuple[float, str]]] = {}
    lost: Counter[str] = Counter()
    examples: list[str] = []
    for each in embedded:
        if (each.key, each.modality) not in stored.vectors:
            continue  # a row without a vector of this modality
        if each.vector is not None:
            cosine = stored.cosine(each.key, each.modality, each.vector)
            cosines.setdefault(each.modality, []).append((cosine, each.key))
        elif each.failure is not None:
            lost[each.failure.reason] += 1
            examples.append(f"{each.key}: {each.failure.message}")
    below = sorted(pair for pairs in cosines.values() for pair in pairs if pair[0] < limit)
    return Verification(
        stored.rows,
        stored.drawn,
        limit,
        stored.fingerprint,
        stored.server_fingerprint(server_fingerprint),
        stored.mapped_from,
        {name: _drift([cosine for cosine, _ in pairs], limit) for name, pairs in cosines.items()},
        lost,
        tuple(examples[:_MAX_EXAMPLES]),
        tuple(key for _, key in below[:_MAX_EXAMPLES]),
    )


def bound_of(dtype: str) -> float:
    """Returns the cosine that vectors of the same model reach in a data type."""
    return _BOUNDS.get(dtype, _FLOAT_BOUND)


def _drift(cosines: list[float], bound: float) -> Drift:
    low, p1, median = (round(float(value), 6) for value in np.quantile(cosines, [0, 0.01, 0.5]))
    return Drift(len(cosines), low, p1, median, sum(cosine < bound for cosine in cosines))


def _bound(folder: VectorFolder) -> float:
    migration = folder.manifest.get("migration")
    if migration:  # mapped vectors are near those of the new model, and not equal
        return float(min(values["min"] for values in migration["cosine"].values()))
    return bound_of(folder.dtype)
