"""Image files in folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields the paths themselves, and for each folder among them the image files below it, sorted.

    A file that is named is taken whatever its name, and whether it exists or not.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        else:
            yield path
