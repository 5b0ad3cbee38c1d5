"""What can be chosen about sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignserve._suffixes import IMAGE_SUFFIXES
from alignserve.datasets.sources.kinds import Kind

ALL_COLUMNS = "*"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How sources are read.

    Attributes:
        kind: Of all sources, whatever their names and contents say; `None` recognizes each.
        image_column: The column of images or of paths to them; in a tar, the suffix of the image's member.
            `None` looks for a well-known name, and an empty string reads no images.
        text_column: The same for texts; next to image files, the suffix of the text's file.
        key_column: The column of the rows' keys, which must be unique; `None` makes keys of the file's name
            and the row's position in it.
        columns: Other columns to keep, by name; `("*",)` keeps all columns of tables that list them (Parquet
            and CSV).
        image_root: The folder below which relative paths in tables are found; `None` is the table's folder.
        image_suffixes: Of the image files that are taken, in lower case and with the dot.
        delimiter: Between the cells of CSV; `None` finds it in the header.
        max_image_bytes: Larger images fail, without being read.
        max_text_bytes: Larger texts fail.
        max_row_bytes: A larger row of CSV, line of JSON Lines or metadata member of a tar fails.
        reads_images: Read the image files that rows name; otherwise rows have their paths, so that several
            can be read at a time.
        files_per_block: Number of image files in each source file of a dataset.
    """

    kind: Kind | None = None
    image_column: str | None = None
    text_column: str | None = None
    key_column: str | None = None
    columns: Sequence[str] = ()
    image_root: Path | None = None
    image_suffixes: frozenset[str] = IMAGE_SUFFIXES
    delimiter: str | None = None
    max_image_bytes: int = 64 << 20
    max_text_bytes: int = 1 << 20
    max_row_bytes: int = 16 << 20
    reads_images: bool = True
    files_per_block: int = 10_000

    def __post_init__(self) -> None:
        if self.kind is not None:
            object.__setattr__(self, "kind", Kind(self.kind))  # of a command it is a `str`
