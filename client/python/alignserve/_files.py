"""Image files in folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields the paths themselves, and for each folder among them the image files below it, sorted.

    A file that is named is taken whatever its name, and whether it exists or not.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if is_image_file(file))
        else:
            yield path


def is_image_file(path: str | Path) -> bool:
    """Says whether there is a file of this name, and the name is an image's."""
    # Of what cannot be a name at all, os.path says no, where pathlib raises.
    return Path(path).suffix.lower() in SUFFIXES and os.path.isfile(path)  # noqa: PTH113
