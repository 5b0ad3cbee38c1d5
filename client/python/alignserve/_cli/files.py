"""Finds image files in folders, and reports the files that are skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from alignserve._suffixes import IMAGE_SUFFIXES, OPTIONAL_IMAGE_SUFFIXES


@dataclass(slots=True)
class Found:
    """Files for a command.

    Attributes:
        files: Files to send, sorted within each folder.
        optional: Files to send only if the server reads their format.
        skipped: Number of other files, by suffix.
        unreadable: Folders that could not be read, and why.
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
            if file in self.optional and not any(name in formats for name in OPTIONAL_IMAGE_SUFFIXES[suffix]):
                self.skipped[suffix] += 1
            else:
                kept.append(file)
        return kept

    def left_out(self) -> list[str]:
        """Returns what was left out, one line each, for people."""
        lines = [f"cannot read {folder}" for folder in self.unreadable]
        if self.skipped:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.skipped.items()))
            advice = (
                "; convert those that are images to JPEG"
                if set(self.skipped) & set(OPTIONAL_IMAGE_SUFFIXES)
                else ""
            )
            lines.append(f"skipped, since this server does not read them: {kinds}{advice}")
        return lines


def image_files(paths: Iterable[Path]) -> Found:
    """Returns the paths that are files, and the image files below those that are folders.

    A path that is given is used whatever its suffix, and even if it does not exist.
    """
    found = Found()
    for path in paths:
        if path.is_dir():
            _search(path, found)
        else:
            found.files.append(path)
    return found


def is_image_file(path: str | Path) -> bool:
    """Returns whether a file with this name exists, and its suffix is an image format's."""
    # For strings that cannot be file names, os.path returns False where pathlib raises.
    return has_image_suffix(path) and os.path.isfile(path)  # noqa: PTH113


def has_image_suffix(path: str | Path) -> bool:
    """Returns whether the suffix is an image format's."""
    suffix = Path(path).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in OPTIONAL_IMAGE_SUFFIXES


def _search(folder: Path, found: Found) -> None:
    def unreadable(error: OSError) -> None:
        found.unreadable.append(f"{error.filename}: {error.strerror}")

    files = []
    for parent, _, names in os.walk(folder, onerror=unreadable):
        for name in names:
            file = Path(parent) / name
            if has_image_suffix(file) and _may_be_read(file):
                files.append(file)
            elif not name.startswith("."):
                found.skipped[file.suffix.lower() or "without suffix"] += 1
    found.files += sorted(files)
    found.optional.update(file for file in files if file.suffix.lower() in OPTIONAL_IMAGE_SUFFIXES)


def _may_be_read(path: Path) -> bool:
    """Returns whether a file is regular, and true if that cannot be told: then reading it says why."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
