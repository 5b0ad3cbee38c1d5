"""The pages of the documentation: every Markdown file of the repository."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = "https://github.com/alignserve/alignserve/blob/main"

_SKIPPED = {"node_modules", "site", "build", "dist", "prepared"}  # a prepared checkpoint has copies


def pages() -> list[Path]:
    """Returns the paths of all pages, except those in hidden folders such as `.venv`."""
    return sorted(_walk())


def _walk() -> Iterator[Path]:
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if not name.startswith(".") and name not in _SKIPPED]
        yield from (Path(folder, file) for file in files if file.endswith(".md"))
