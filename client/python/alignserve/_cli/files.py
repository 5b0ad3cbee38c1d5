"""Image files in folders, and what else is there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})

# Formats that a server may read or not, by suffix; ModelInfo.image_formats says so.
_OPTIONAL = {
    ".avif": ("AVIF",),
    ".heic": ("HEIC", "HEIF"),
    ".heif": ("HEIC", "HEIF"),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
}


@dataclass(slots=True)
class Found:
    """Files for a command.

    Attributes:
        files: Those to be sent, sorted within each folder.
        optional: Those that have to be sent if the server reads their format.
        skipped: How many other files there are, by suffix.
        unreadable: Folders that could not be looked into, and why.
    """

    files: list[Path] = field(default_factory=list)
    optional: set[Path] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    def readable(self, formats: Container[str]) -> list[Path]:
        """Returns the files for a server that reads these formats; the others count as skipped."""
        kept = []
        for file in self.files:
            suffix = file.suffix.lower()
            if file in self.optional and not any(name in formats for name in _OPTIONAL[suffix]):
                self.skipped[suffix] += 1
            else:
                kept.append(file)
        return kept

    def told(self) -> list[str]:
        """Returns what was left out, for people, a line each."""
        lines = [f"cannot look into {what}" for what in self.unreadable]
        if self.skipped:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.skipped.items()))
            advice = "; convert those that are images to JPEG" if set(self.skipped) & set(_OPTIONAL) else ""
            lines.append(f"skipped, since this server does not read them: {kinds}{advice}")
        return lines


def image_files(paths: Iterable[Path]) -> Found:
    """Finds the paths themselves, and for each folder among them the image files below it.

    A file that is named is taken whatever its name, and whether it exists or not.
    """
    found = Found()
    for path in paths:
        if path.is_dir():
            _search(path, found)
        else:
            found.files.append(path)
    return found


def is_image_file(path: str | Path) -> bool:
    """Says whether there is a file of this name, and the name is an image's."""
    # Of what cannot be a name at all, os.path says no, where pathlib raises.
    suffix = Path(path).suffix.lower()
    return (suffix in SUFFIXES or suffix in _OPTIONAL) and os.path.isfile(path)  # noqa: PTH113


def _search(folder: Path, found: Found) -> None:
    def unreadable(error: OSError) -> None:
        found.unreadable.append(f"{error.filename}: {error.strerror}")

    files = []
    for parent, _, names in os.walk(folder, onerror=unreadable):
        for name in names:
            file = Path(parent) / name
            if is_image_file(file):
                files.append(file)
            elif not name.startswith("."):
                found.skipped[file.suffix.lower() or "without suffix"] += 1
    found.files += sorted(files)
    found.optional.update(file for file in files if file.suffix.lower() in _OPTIONAL)
