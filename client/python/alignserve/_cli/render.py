"""Formats results as text for people and as plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from alignserve._results import Classification, Comparison, EmbeddingArray, ModelInfo
from alignserve.errors import AlignserveError

_WIDEST = 60  # maximum length of an input's name in a table, in characters
_FIRST_VALUES = 4


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Lays out rows in columns; those in `right` are aligned to the right."""
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths, right) for row in cells]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def classification_table(found: Sequence[Classification]) -> str:
    """Lays out the labels of one image, best first."""
    rows = [
        (_short(one.label), f"{one.score:.4f}", f"{one.similarity:.4f}", f"{one.logit:.2f}") for one in found
    ]
    return table(("label", "score", "similarity", "logit"), rows, right=(1, 2, 3))


def embedding_table(rows: Sequence[tuple[str, str, EmbeddingArray]]) -> str:
    """Lays out embeddings given as (input, kind, vector)."""
    lines = [
        (
            _short(name),
            kind,
            str(vector.size),
            f"{np.linalg.norm(vector):.4f}",
            " ".join(f"{value:+.4f}" for value in vector[:_FIRST_VALUES]) + " …",
        )
        for name, kind, vector in rows
    ]
    return table(("input", "kind", "dimension", "norm", "first values"), lines, right=(2, 3))


def similarity_table(
    images: Sequence[tuple[str, EmbeddingArray]], texts: Sequence[tuple[str, EmbeddingArray]]
) -> str:
    """Lays out the cosine similarity of each image and each text."""
    rows = [
        (_short(image), *(f"{_cosine(image_vector, text_vector):.4f}" for _, text_vector in texts))
        for image, image_vector in images
    ]
    header = ("cosine similarity", *(_short(text) for text, _ in texts))
    return table(header, rows, right=range(1, len(header)))


def comparison_table(rows: Sequence[tuple[str, str, Comparison]]) -> str:
    """Lays out comparisons given as (image, text, comparison)."""
    lines = [
        (_short(image), _short(text), f"{one.similarity:.4f}", f"{one.logit:.2f}")
        for image, text, one in rows
    ]
    return table(("image", "text", "similarity", "logit"), lines, right=(2, 3))


def info_table(info: ModelInfo) -> str:
    """Lays out the model and its limits, one fact per line."""
    facts = {name: _fact(value) for name, value in asdict(info).items()}
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def classification_data(found: Sequence[Classification]) -> list[dict[str, Any]]:
    """Returns the labels of one image as data for JSON."""
    return [
        {
            "label": one.label,
            "score": _exact(one.score),
            "similarity": _exact(one.similarity),
            "logit": _exact(one.logit),
        }
        for one in found
    ]


def comparison_data(comparison: Comparison) -> dict[str, float]:
    """Returns a comparison as data for JSON."""
    return {"similarity": _exact(comparison.similarity), "logit": _exact(comparison.logit)}


def vector_data(vector: EmbeddingArray) -> list[float] | list[int]:
    """Returns a vector as data for JSON."""
    if vector.dtype.kind == "f":
        return [_exact(value) for value in vector.tolist()]
    numbers: list[int] = vector.tolist()
    return numbers


def error_data(error: AlignserveError) -> dict[str, str]:
    """Returns an error as data for JSON."""
    return {"code": error.code.name, "reason": error.reason, "message": error.message}


def _cosine(one: EmbeddingArray, other: EmbeddingArray) -> float:
    exact, other_exact = one.astype(np.float64), other.astype(np.float64)  # int8 would overflow
    return float(exact @ other_exact / (np.linalg.norm(exact) * np.linalg.norm(other_exact)))


def _exact(value: float) -> float:
    return float(f"{value:.9g}")  # nine digits identify a single-precision number; more are noise


def _fact(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value) or "-"


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _short(name: str) -> str:
    one_line = " ".join(name.split())
    return one_line if len(one_line) <= _WIDEST else "…" + one_line[1 - _WIDEST :]
