"""An orthogonal map from the vectors of an old model to those of a new one, fitted on rows of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve.search.array_file import content_of, digest_of, pack, restored, unpack
from alignserve.search.recall import Recall, RecallMeter
from alignserve.search.rotation import nearest_orthogonal
from alignserve.search.vectors import VectorsError, normalized

FILE = "map.npz"
"""In the folder of the mapped vectors: the map that made them."""

_FORMAT, _VERSION = "alignserve-map", 1
_BATCH = 4096
_VALIDATION, _HELD_OUT = 0.1, 0.2  # of the pairs: to choose the map by, and to measure it by


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """The same inputs, embedded by two models.

    Attributes:
        old: (n, old dim) float32, of length 1.
        new: (n, new dim) float32, of length 1.
    """

    old: NDArray[np.float32]
    new: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.old)

    def at(self, positions: NDArray[np.intp]) -> Pairs:
        """Returns some of the pairs."""
        return Pairs(self.old[positions], self.new[positions])


@dataclass(frozen=True, slots=True)
class Form:
    """How a map is fitted.

    Attributes:
        is_shared: One rotation for images and texts, rather than one for each.
        is_centred: Maps the mean of each modality to its new mean, and rotates about it.
    """

    is_shared: bool
    is_centred: bool

    @property
    def name(self) -> str:
        """Returns the name in manifests."""
        fitted = "together" if self.is_shared else "apart"
        return f"{fitted}, {'centred' if self.is_centred else 'not centred'}"


@dataclass(frozen=True, slots=True, eq=False)
class OrthogonalMap:
    """A map from old vectors to new ones.

    Attributes:
        form: How it was fitted.
        matrices: (old dim, new dim) float32 by modality; the fewer of rows and columns are orthonormal.
        old_means: (old dim,) float32 by modality; zeros if it is not centred.
        new_means: (new dim,) float32 by modality.
        old_fingerprint: Of the model whose vectors it takes.
        new_fingerprint: Of the model whose vectors it imitates.
    """

    form: Form
    matrices: Mapping[str, NDArray[np.float32]]
    old_means: Mapping[str, NDArray[np.float32]]
    new_means: Mapping[str, NDArray[np.float32]]
    old_fingerprint: str
    new_fingerprint: str

    def apply(self, vectors: NDArray[Any], modality: str) -> NDArray[np.float32]:
        """Returns mapped vectors: (n, old dim) to (n, new dim), of length 1."""
        centred = normalized(vectors) - self.old_means[modality]
        return normalized(centred @ self.matrices[modality] + self.new_means[modality])

    def digest(self) -> str:
        """Returns the SHA-256 of the map, in hexadecimal."""
        return digest_of(f"{self.old_fingerprint}\n{self.new_fingerprint}", self._arrays())

    def to_bytes(self) -> bytes:
        """Returns the content of the file that `load` reads."""
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "is_shared": self.form.is_shared,
            "is_centred": self.form.is_centred,
            "old_fingerprint": self.old_fingerprint,
            "new_fingerprint": self.new_fingerprint,
            "digest": self.digest(),
        }
        return pack(about, self._arrays())

    @classmethod
    def load(cls, file: Path) -> OrthogonalMap:
        """Reads a map.

        Raises:
            VectorsError: The file is missing, damaged, or of another version.
        """
        about, arrays = unpack(content_of(file), file, _FORMAT, _VERSION)
        matrices, old_means, new_means = (_named(arrays, kind) for kind in ("matrix", "old_mean", "new_mean"))
        return restored(
            file,
            about,
            lambda: cls(
                Form(about["is_shared"], about["is_centred"]),
                *(matrices, old_means, new_means),
                *(about["old_fingerprint"], about["new_fingerprint"]),
            ),
        )

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        kinds = {"matrix": self.matrices, "old_mean": self.old_means, "new_mean": self.new_means}
        return {f"{kind}_{name}": array for kind, arrays in kinds.items() for name, array in arrays.items()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well mapped vectors take the place of new ones, on pairs that the map was not fitted to.

    Attributes:
        cosine: Of mapped and new vectors, by modality: `min`, `p1` and `median`.
        mapped: Recall by direction if every vector searched is mapped; queries are new vectors.
        half_mapped: The same if half of the vectors searched are mapped, and half have been embedded again.
    """

    cosine: Mapping[str, Mapping[str, float]]
    mapped: Mapping[str, Recall]
    half_mapped: Mapping[str, Recall]

    @property
    def worst_recall(self) -> float:
        """Returns the lowest recall@10 of all directions; 0 if there is none."""
        found = [*self.mapped.values(), *self.half_mapped.values()]
        return min((recall.at_10 for recall in found), default=0.0)

    def as_data(self) -> dict[str, Any]:
        """Returns the figures as a manifest has them."""
        return {
            "cosine": {name: dict(values) for name, values in self.cosine.items()},
            "recall": {name: recall.as_data() for name, recall in self.mapped.items()},
            "recall_half_mapped": {name: recall.as_data() for name, recall in self.half_mapped.items()},
        }


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A map, and how it was chosen and measured.

    Attributes:
        map: The form of the highest recall on the pairs for validation, fitted again with them.
        evaluation: On the pairs held out.
        unmapped: The same of the old vectors as they are; `None` if the dimensions differ.
        candidates: Mean recall@10 by form, on the pairs for validation.
        pairs: Number of pairs fitted to, by modality.
        held_out: Number of pairs held out, by modality.
    """

    map: OrthogonalMap
    evaluation: Evaluation
    unmapped: Evaluation | None
    candidates: Mapping[str, float]
    pairs: Mapping[str, int]
    held_out: Mapping[str, int]


def fit_map(
    pairs: Mapping[str, Pairs], old_fingerprint: str, new_fingerprint: str, form: Form
) -> OrthogonalMap:
    """Fits the map of the least squared error (Schönemann 1966); dimensions may differ."""
    old_means = {name: _mean(one.old, form) for name, one in pairs.items()}
    new_means = {name: _mean(one.new, form) for name, one in pairs.items()}
    products = {
        name: np.asarray((one.old - old_means[name]).T @ (one.new - new_means[name]) / len(one), np.float32)
        for name, one in pairs.items()
    }
    if form.is_shared:
        shared = nearest_orthogonal(np.sum(list(products.values()), axis=0, dtype=np.float32))
        matrices = dict.fromkeys(products, shared)
    else:
        matrices = {name: nearest_orthogonal(product) for name, product in products.items()}
    return OrthogonalMap(form, matrices, old_means, new_means, old_fingerprint, new_fingerprint)


def evaluate(
    fitted: OrthogonalMap, held_out: Mapping[str, Pairs], texts: NDArray[np.float32] | None = None
) -> Evaluation:
    """Measures a map on pairs that it was not fitted to.

    Args:
        fitted: The map.
        held_out: The pairs, by modality. The new vectors are the queries, and each modality is searched.
        texts: More queries: (n, new dim) vectors of texts by the new model, if there are no pairs of texts.
    """
    queries = {name: pairs.new for name, pairs in held_out.items()}
    if texts is not None:
        queries["text"] = texts
    mapped = {name: fitted.apply(pairs.old, name) for name, pairs in held_out.items()}
    half = {name: _every_other(mapped[name], pairs.new) for name, pairs in held_out.items()}
    cosine = {name: _quantiles(np.sum(mapped[name] * pairs.new, axis=1)) for name, pairs in held_out.items()}
    return Evaluation(
        cosine, _recalls(queries, held_out, mapped, texts), _recalls(queries, held_out, half, texts)
    )


def choose(
    pairs: Mapping[str, Pairs],
    old_fingerprint: str,
    new_fingerprint: str,
    *,
    seed: int,
    texts: NDArray[np.float32] | None = None,
) -> Fitted:
    """Fits each form of map to most of the pairs, and measures the best one on pairs held out.

    Args:
        pairs: By modality.
        old_fingerprint: Of the model of the old vectors.
        new_fingerprint: Of the model of the new ones.
        seed: Of the choice of the pairs held out.
        texts: As for `evaluate`.

    Raises:
        VectorsError: There are too few pairs to hold any out.
    """
    parts = {name: _split(len(one), seed) for name, one in pairs.items()}
    if not pairs or min(len(held) for _, _, held in parts.values()) < 2:
        raise VectorsError(
            "there are too few pairs of old and new vectors to fit a map; take a larger sample"
        )
    rest = {name: one.at(parts[name][0]) for name, one in pairs.items()}
    validation = {name: one.at(parts[name][1]) for name, one in pairs.items()}
    held_out = {name: one.at(parts[name][2]) for name, one in pairs.items()}
    scores = {
        form: _score(evaluate(fit_map(rest, old_fingerprint, new_fingerprint, form), validation, texts))
        for form in _forms(pairs)
    }
    best = max(scores, key=lambda form: scores[form])
    all_fitted = {name: one.at(np.concatenate(parts[name][:2])) for name, one in pairs.items()}
    found = fit_map(all_fitted, old_fingerprint, new_fingerprint, best)
    return Fitted(
        found,
        evaluate(found, held_out, texts),
        _unmapped(found, held_out, texts),
        {form.name: round(score, 4) for form, score in scores.items()},
        {name: len(one) for name, one in all_fitted.items()},
        {name: len(one) for name, one in held_out.items()},
    )


def _unmapped(
    fitted: OrthogonalMap, held_out: Mapping[str, Pairs], texts: NDArray[np.float32] | None
) -> Evaluation | None:
    """Measures the old vectors as they are: checkpoints of one family may be near enough without a map."""
    rows, columns = next(iter(fitted.matrices.values())).shape
    if rows != columns:
        return None
    same = dict.fromkeys(held_out, np.eye(rows, dtype=np.float32))
    zero = dict.fromkeys(held_out, np.zeros(rows, np.float32))
    form = Form(is_shared=True, is_centred=False)
    as_is = OrthogonalMap(form, same, zero, zero, fitted.old_fingerprint, fitted.new_fingerprint)
    return evaluate(as_is, held_out, texts)


def _forms(pairs: Mapping[str, Pairs]) -> Iterator[Form]:
    for is_centred in (False, True):
        if len(pairs) > 1:
            yield Form(is_shared=True, is_centred=is_centred)
        yield Form(is_shared=False, is_centred=is_centred)


def _score(evaluation: Evaluation) -> float:
    recalls = [recall.at_10 for recall in (*evaluation.mapped.values(), *evaluation.half_mapped.values())]
    return float(np.mean(recalls))


def _recalls(
    queries: Mapping[str, NDArray[np.float32]],
    held_out: Mapping[str, Pairs],
    stored: Mapping[str, NDArray[np.float32]],
    texts: NDArray[np.float32] | None,
) -> dict[str, Recall]:
    found = {}
    for name, query in queries.items():
        for target, pairs in held_out.items():
            is_own = name == target and not (name == "text" and texts is not None)
            own = np.arange(len(query)) if is_own else None
            meter = RecallMeter(len(query), own)
            for start in range(0, len(pairs), _BATCH):
                part = slice(start, start + _BATCH)
                numbers = np.arange(len(pairs))[part]
                meter.add(query @ pairs.new[part].T, query @ stored[target][part].T, numbers)
            found[f"{name}_to_{target}"] = meter.result()
    return found


def _split(count: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Returns the positions to fit to, to choose by and to measure by."""
    order = np.random.default_rng(seed).permutation(count)
    fitted = count - int(count * (_VALIDATION + _HELD_OUT))
    validated = fitted + int(count * _VALIDATION)
    return order[:fitted], order[fitted:validated], order[validated:]


def _every_other(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    is_first = np.arange(len(one))[:, None] % 2 == 0
    return np.asarray(np.where(is_first, one, other), np.float32)


def _quantiles(cosines: NDArray[np.float32]) -> dict[str, float]:
    low, p1, median = np.quantile(cosines, [0, 0.01, 0.5])
    return {"min": round(float(low), 5), "p1": round(float(p1), 5), "median": round(float(median), 5)}


def _mean(vectors: NDArray[np.float32], form: Form) -> NDArray[np.float32]:
    if not form.is_centred:
        return np.zeros(vectors.shape[1], np.float32)
    return np.asarray(vectors.mean(axis=0, dtype=np.float64), np.float32)


def _named(arrays: Mapping[str, NDArray[np.float32]], kind: str) -> dict[str, NDArray[np.float32]]:
    prefix = f"{kind}_"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
