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


class StoredVectors:
    """The stored vectors of a sample, and the form that new vectors must take to compare with them.

    Args:
        folder: Which they are of.
        numbers: Of the rows of the sample.

    Raises:
        VectorsError: They are rotated, and the rotation is missing.
    """

    def __init__(self, folder: VectorFolder, numbers: NDArray[np.int64]) -> None:
        has_rotation = "+" in folder.fingerprint or folder.dtype in ("int8", "binary")
        self._compaction = Compaction.load(folder.path) if has_rotation else None
        self.fingerprint = folder.fingerprint
        self.bound = _bound(folder)
        table = folder.take(numbers, [COLUMNS[name] for name in folder.modalities])
        self._vectors: dict[tuple[int, str], NDArray[np.float32]] = {}
        for name in folder.modalities:
            is_there, stored = vectors_of(table.column(COLUMNS[name]))
            exact = self._compaction.decode(stored) if self._compaction else normalized(stored)
            self._vectors.update(
                ((number, name), vector)
                for number, vector in zip(numbers[is_there].tolist(), exact, strict=True)
            )

    def server_fingerprint(self, model_fingerprint: str) -> str:
        """Returns the fingerprint that these vectors would have, had the server's model made them."""
        if self._compaction is None:
            return model_fingerprint
        _, plus, rotation = self.fingerprint.partition("+")
        return f"{model_fingerprint}{plus}{rotation}"

    def __contains__(self, embedded: Embedded) -> bool:
        return (embedded.number, embedded.modality) in self._vectors

    def cosine(self, embedded: Embedded, vector: NDArray[np.float32]) -> float:
        """Returns the cosine of the stored vector and a new one: (dim,).

        Raises:
            VectorsError: The server's model has another dimension.
        """
        stored = self._vectors[embedded.number, embedded.modality]
        new = vector[None, :]
        wanted = len(self._compaction.rotation.matrix) if self._compaction else len(stored)
        if new.shape[1] != wanted:
            raise VectorsError(
                f"the stored vectors have {wanted} elements, and the server's {new.shape[1]}: "
                "it serves another model"
            )
        if self._compaction is None:
            return float(normalized(new)[0] @ stored)
        again = self._compaction.decode(self._compaction.encode(new, embedded.modality))
        return float(again[0] @ stored)


def verify(
    folder: VectorFolder,
    numbers: NDArray[np.int64],
    embedded: Iterable[Embedded],
    server_fingerprint: str,
    *,
    bound: float | None = None,
) -> Verification:
    """Compares the stored vectors of a sample with new ones.

    Args:
        folder: The stored vectors.
        numbers: Of the rows of the sample.
        embedded: The new vectors, in any order.
        server_fingerprint: Of the model that makes them.
        bound: Lowest cosine of equal vectors; by default 0.999 for floats and less for quantized vectors.

    Raises:
        VectorsError: The vectors cannot be compared.
        AlignserveError: The server failed.
    """
    stored = StoredVectors(folder, numbers)
    limit = stored.bound if bound is None else bound
    cosines: dict[str, list[tuple[float, str]]] = {}
    lost: Counter[str] = Counter()
    examples: list[str] = []
    for each in embedded:
        if each not in stored:
            continue  # a row without a vector of this modality
        if each.vector is not None:
            cosines.setdefault(each.modality, []).append((stored.cosine(each, each.vector), each.key))
        elif each.failure is not None:
            lost[each.failure.reason] += 1
            examples.append(f"{each.key}: {each.failure.message}")
    below = sorted(pair for pairs in cosines.values() for pair in pairs if pair[0] < limit)
    return Verification(
        folder.rows,
        len(numbers),
        limit,
        stored.fingerprint,
        stored.server_fingerprint(server_fingerprint),
        {name: _drift([cosine for cosine, _ in pairs], limit) for name, pairs in cosines.items()},
        lost,
        tuple(examples[:_MAX_EXAMPLES]),
        tuple(key for _, key in below[:_MAX_EXAMPLES]),
    )


def _drift(cosines: list[float], bound: float) -> Drift:
    low, p1, median = (round(float(value), 6) for value in np.quantile(cosines, [0, 0.01, 0.5]))
    return Drift(len(cosines), low, p1, median, sum(cosine < bound for cosine in cosines))


def _bound(folder: VectorFolder) -> float:
    migration = folder.manifest.get("migration")
    if migration:  # mapped vectors are near those of the new model, and not equal
        return float(min(values["min"] for values in migration["cosine"].values()))
    return _BOUNDS.get(folder.dtype, _FLOAT_BOUND)
