"""Lays out what was found as a table that fits the terminal."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence

from alignserve.search.pictures import PATH_COLUMN
from alignserve.search.store import Hit
from alignserve.search.visible import visible

_HEADER = ("rank", "similarity", "key")
_WIDTH_IN_PIPES = 100
_NARROWEST = 12  # columns of a text that is shown at all
_MAX_COLUMNS = 3  # besides the key
_GAP = "  "


def terminal_width() -> int:
    """Returns the width of the terminal, in characters."""
    return shutil.get_terminal_size((_WIDTH_IN_PIPES, 24)).columns


def table(hits: Sequence[Hit], width: int) -> str:
    """Lays out rows, best first: rank, similarity, key, and the first columns that have texts or numbers.

    Args:
        hits: At least one.
        width: Of the terminal; longer cells are shortened, and columns left out.
    """
    rows = [[str(rank), f"{hit.similarity:.4f}", visible(hit.key)] for rank, hit in enumerate(hits, start=1)]
    header = list(_HEADER)
    for name in _shown_columns(hits):
        header.append(visible(name))
        for row, hit in zip(rows, hits, strict=True):
            row.append(_cell(hit.columns.get(name)))
    widths = _widths([header, *rows], width)
    lines = [_line(row, widths) for row in (header, *rows)]
    return "\n".join([lines[0], _GAP.join("─" * each for each in widths), *lines[1:]])


def _shown_columns(hits: Sequence[Hit]) -> list[str]:
    """Returns the names of the first columns with a value; the key stands for the path."""
    names = {
        name: None for hit in hits for name, value in hit.columns.items() if value not in (None, "", hit.key)
    }
    return [name for name in names if name != PATH_COLUMN][:_MAX_COLUMNS]


def _cell(value: object) -> str:
    return "" if value is None else visible(" ".join(str(value).split()))


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Returns the columns' widths: each as wide as its content, or an equal share of what is left."""
    wanted = [max(map(_display_width, column)) for column in zip(*rows, strict=True)]
    fixed = wanted[:2]
    left = max(width - sum(fixed) - len(_GAP) * 2, _NARROWEST)
    texts = wanted[2:]
    while len(texts) > 1 and len(texts) * (_NARROWEST + len(_GAP)) > left:
        texts.pop()
    left -= len(_GAP) * (len(texts) - 1)
    shares = dict.fromkeys(range(len(texts)), 0)
    for place, column in enumerate(sorted(shares, key=texts.__getitem__)):
        shares[column] = min(texts[column], left // (len(texts) - place))
        left -= shares[column]
    return [*fixed, *shares.values()]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [_clipped(cell, width) for cell, width in zip(row, widths, strict=False)]
    padded = [
        " " * (width - _display_width(cell)) + cell
        if column < 2
        else cell + " " * (width - _display_width(cell))
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return _GAP.join(padded).rstrip()


def _clipped(text: str, width: int) -> str:
    """Returns the end of a text that is too wide: of a path, the name matters most."""
    if _display_width(text) <= width:
        return text
    while text and _display_width(text) > width - 1:
        text = text[1:]
    return f"…{text}"


def _display_width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
