"""The columns of a curated pair: COYO-700M's names for what COYO measured, and our own for the rest.

Measured from the picture and the text: `width`, `height`, `image_phash`, `text_length` and `word_count`, as
in COYO. `image_digest`, `bytes`, `format`, `aspect_ratio`, `min_side`, `language`, `language_confidence` and
`has_noun` are ours. The server measures the similarity and the number of tokens, in columns that are named
for its model. Scores of other models, such as `nsfw_score_opennsfw2`, come from the source or from a plug-in
scorer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import pyarrow as pa

from alignserve.curate.pictures import Picture
from alignserve.datasets.row import Row

Whitespace: TypeAlias = Literal["kept", "trimmed", "collapsed"]

PICTURE_FIELDS = (
    pa.field("width", pa.int64()),
    pa.field("height", pa.int64()),
    pa.field("image_phash", pa.string()),
    pa.field("image_digest", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("format", pa.string()),
    pa.field("aspect_ratio", pa.float64()),
    pa.field("min_side", pa.int64()),
)
TEXT_FIELDS = (
    pa.field("text_length", pa.int64()),
    pa.field("word_count", pa.int64()),
    pa.field("language", pa.string()),
    pa.field("language_confidence", pa.float64()),
    pa.field("has_noun", pa.bool_()),
)


class TextMeasures(Protocol):
    """Measures of texts; the module `alignserve.curate.language` has them."""

    def detect(self, text: str) -> tuple[str | None, float]:
        """Returns the language, such as `en`, or `None` for none, and a confidence from 0 to 1."""

    def has_noun(self, text: str) -> bool:
        """Returns whether a word of the text can be a noun."""

    def word_count(self, text: str) -> int:
        """Returns the number of words separated by white space."""


def similarity_column(model_id: str) -> str:
    """Returns the column for a model's similarities: `align_similarity_base` for `kakaobrain/align-base`."""
    family, _, variant = _slug(model_id).partition("_")
    return f"{family}_similarity_{variant}".rstrip("_")


def tokens_column(model_id: str) -> str:
    """Returns the column for the number of tokens that a model reads: `num_tokens_align_base`."""
    return f"num_tokens_{_slug(model_id)}"


def with_whitespace(text: str, whitespace: Whitespace) -> str:
    """Returns a text with its white space, which is that of Unicode, as a published dataset has it.

    HTML entities such as `&amp;` stay.

    Args:
        text: Of a source.
        whitespace: `kept` as it is; `trimmed`: spaces for newlines, and none at the ends, as LAION has it;
            `collapsed`: one space for each run, and none at the ends, as COYO has it.
    """
    if whitespace == "trimmed":
        return text.replace("\n", " ").strip()
    return " ".join(text.split()) if whitespace == "collapsed" else text


def picture_columns(row: Row, picture: Picture | None) -> dict[str, Any]:
    """Returns the columns of a row's picture, from the picture if there is one, or from the source's columns.

    `aspect_ratio` is the longer side divided by the shorter one, and `min_side` the shorter one. Both are
    those of the original where the source has `original_width` and `original_height`, as img2dataset writes
    them.
    """
    source = row.columns
    found: dict[str, Any] = {
        "width": _side(value_of(source, "width")),
        "height": _side(value_of(source, "height")),
        "image_phash": _string(value_of(source, "image_phash")),
        "image_digest": None,
        "bytes": whole_number(value_of(source, "bytes")),
        "format": _string(value_of(source, "format")),
    }
    if picture is not None:
        found |= {
            "width": picture.width,
            "height": picture.height,
            "image_phash": picture.phash,
            "image_digest": picture.digest,
            "bytes": picture.byte_count,
            "format": picture.format,
        }
    sides = [_side(value_of(source, name)) for name in ("original_width", "original_height")]
    if not all(sides):
        sides = [found["width"], found["height"]]
    shorter, longer = sorted(sides) if all(sides) else (None, None)  # type: ignore[type-var]  # no `None` here
    return {**found, "aspect_ratio": longer / shorter if shorter and longer else None, "min_side": shorter}


def text_columns(text: str | None, measures: TextMeasures) -> dict[str, Any]:
    """Returns the columns of a text; `None` counts as empty and has no language."""
    if not text:
        empty = {"text_length": 0, "word_count": 0, "language": None, "language_confidence": None}
        return {**empty, "has_noun": False}
    language, confidence = measures.detect(text)
    return {
        "text_length": len(text),
        "word_count": measures.word_count(text),
        "language": language,
        "language_confidence": confidence,
        "has_noun": measures.has_noun(text),
    }


def value_of(columns: Mapping[str, Any], name: str) -> Any:
    """Returns a value of a source by its column, in lower or upper case: LAION has `URL` and `WIDTH`."""
    return columns.get(name, columns.get(name.upper()))


def number(value: object) -> float | None:
    """Returns a value of a source as a number; `None` if it is missing, NaN, or text that is not a number."""
    try:
        found = float(value)  # type: ignore[arg-type]  # what it does not take is not a number
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) else found


def whole_number(value: object) -> int | None:
    """Returns a value of a source as a whole number, or `None` if it is not one, or not of 64 bits."""
    found = number(value)
    return int(found) if found is not None and found.is_integer() and abs(found) < 2**63 else None


def is_missing(value: object) -> bool:
    """Returns whether there is no value to judge: `None` or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def source_numbers(columns: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float | None]:
    """Returns the values of a source's columns that rules need, as numbers."""
    return {name: number(value_of(columns, name)) for name in names}


def _side(value: object) -> int | None:
    """Returns a source's width or height, or `None` if it is not that of a picture."""
    found = whole_number(value)
    return found if found is not None and found > 0 else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _slug(model_id: str) -> str:
    name = model_id.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_") or "model"
