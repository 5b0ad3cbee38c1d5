"""Chooses the columns of a table: by the options, or by names that datasets commonly use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignserve.datasets.source import SourceError
from alignserve.datasets.sources.options import ALL_COLUMNS, SourceOptions

IMAGE_NAMES = (
    *("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes"),
    *("image_path", "img_path", "image_file", "file_name", "filename", "file_path", "filepath", "path"),
)
TEXT_NAMES = ("text", "caption", "txt", "alt_text", "description")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns of a table by their part in a row; `None` where there is none.

    Attributes:
        image: Of images or paths.
        text: Of texts.
        key: Of keys.
        kept: Others to keep, as far as the table has them.
    """

    image: str | None
    text: str | None
    key: str | None
    kept: tuple[str, ...]


def choose(
    names: Sequence[str],
    options: SourceOptions,
    *,
    place: str,
    is_image: Callable[[str], bool] = bool,
    is_text: Callable[[str], bool] = bool,
) -> Chosen:
    """Returns the columns to read of a table with these columns.

    Well-known names are looked for in their order, first as they are written, then in any case (LAION has
    `TEXT`).

    Args:
        names: Of the table.
        options: May name columns.
        place: The table, for messages.
        is_image: Whether a column can hold images or paths, by its type.
        is_text: Whether a column can hold texts, by its type.

    Raises:
        SourceError: A column that was asked for is missing, comes twice or cannot hold what it should, or
            nothing fits.
    """
    image = _one(names, options.image_column, IMAGE_NAMES, is_image, f"{place}: images")
    text = _one(names, options.text_column, TEXT_NAMES, is_text, f"{place}: texts")
    key = _one(names, options.key_column or "", (), bool, f"{place}: keys")
    if image is None and text is None:
        raise SourceError(
            f"{place}: no column of images or texts was recognized among {listed(names)}; name it with "
            "image_column or text_column"
        )
    kept = _kept(names, options, {image, text, key})
    for name in (image, text, key, *kept):
        if name is not None and names.count(name) > 1:
            raise SourceError(f"{place}: there are {names.count(name)} columns '{name}'; rename all but one")
    return Chosen(image, text, key, kept)


def late_names(chosen: Chosen, options: SourceOptions) -> frozenset[str]:
    """Returns the names that would have been chosen, in lower case, had the table been seen to have them."""
    images = IMAGE_NAMES if chosen.image is None and options.image_column is None else ()
    texts = TEXT_NAMES if chosen.text is None and options.text_column is None else ()
    return frozenset((*images, *texts))


def listed(names: Sequence[str]) -> str:
    """Returns the columns of a table for a message."""
    shown = ", ".join(repr(name) for name in names[:50])
    return f"{shown} and {len(names) - 50} more" if len(names) > 50 else shown or "none"


def _one(
    names: Sequence[str], asked: str | None, known: Sequence[str], fits: Callable[[str], bool], part: str
) -> str | None:
    if asked == "":
        return None
    if asked is None:
        found = (name for name in (*_as_written(names, known), *_in_any_case(names, known)) if fits(name))
        return next(found, None)
    if asked not in names:
        raise SourceError(f"{part} should be in the column '{asked}'; the columns are {listed(names)}")
    if not fits(asked):
        raise SourceError(f"{part} cannot be in the column '{asked}', because of its type")
    return asked


def _as_written(names: Sequence[str], known: Sequence[str]) -> list[str]:
    return [name for name in known if name in names]


def _in_any_case(names: Sequence[str], known: Sequence[str]) -> list[str]:
    return [name for wanted in known for name in names if name.lower() == wanted]


def _kept(names: Sequence[str], options: SourceOptions, taken: set[str | None]) -> tuple[str, ...]:
    if tuple(options.columns) == (ALL_COLUMNS,):
        return tuple(name for name in names if name not in taken)
    return tuple(name for name in dict.fromkeys(options.columns) if name in names)
