"""A row of a dataset, and a row that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RowFailure:
    """Why a row has no result.

    Attributes:
        reason: For programs, in capitals, such as `ROW_UNREADABLE` or a reason of the server,
            `IMAGE_UNREADABLE`.
        message: For people: what is wrong, with the value and the limit, and what to do.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a dataset.

    Attributes:
        key: Unique in the dataset, and the same in every run over the same source.
        image: The bytes of an image file, a file to read them from, or `None` if the row has no image.
        text: The text, exactly as the source has it, or `None` if the row has none.
        columns: Values of the other columns that are kept, by name, as pyarrow takes them.
        failure: Why the row cannot be used; such a row counts, and has a key.
    """

    key: str
    image: bytes | Path | None = None
    text: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    failure: RowFailure | None = None
