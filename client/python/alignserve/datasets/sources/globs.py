"""Expands patterns of paths, and reports the folders that it cannot read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from alignserve.datasets.sources.files import is_there
from alignserve.datasets.walk import SYSTEM_FOLDERS, Walk

_MAGIC = frozenset("*?[")


def is_pattern(path: Path) -> bool:
    """Returns whether a path is a pattern; one that exists as it is written is not."""
    return not _MAGIC.isdisjoint(str(path)) and not os.path.lexists(path)


def expand(pattern: Path, walk: Walk) -> list[str]:
    """Returns the paths that match a pattern with `*`, `?`, `[…]` and `**`, sorted by their bytes.

    Names that begin with a dot are matched only by patterns that do. `**` matches folders at any depth,
    without following links. Folders that cannot be read become problems of the walk.
    """
    anchor, *parts = pattern.absolute().parts
    return sorted(set(_expanded(anchor, parts, walk)), key=os.fsencode)


def _expanded(folder: str, parts: list[str], walk: Walk) -> Iterator[str]:
    if not parts:
        yield folder
        return
    part, *rest = parts
    if part == "**":
        for below in walk.folders(folder):
            yield from _expanded(below.path, rest or ["*"], walk)
    elif _MAGIC.isdisjoint(part):
        path = os.path.join(folder, part)  # noqa: PTH118
        try:
            is_match = is_there(path)
        except OSError as error:
            if error.errno != errno.ELOOP:  # loops of links match nothing
                walk.problems.append(f"{path}: {error.strerror}")
            return
        if is_match:
            yield from _expanded(path, rest, walk)
    else:
        for name in _names(folder, part, walk):
            yield from _expanded(os.path.join(folder, name), rest, walk)  # noqa: PTH118


def _names(folder: str, part: str, walk: Walk) -> list[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 — names, in bytes of any encoding
    except NotADirectoryError:
        return []
    except OSError as error:
        walk.problems.append(f"{folder}: {error.strerror}")
        return []
    matches = [
        name for name in names if fnmatchcase(name, part) and name.startswith(".") <= part.startswith(".")
    ]
    left_out = SYSTEM_FOLDERS.intersection(matches)
    walk.skipped.update(left_out)
    return [name for name in matches if name not in left_out]
