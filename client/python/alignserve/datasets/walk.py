"""Walks through folders in a fixed order, without ever waiting for a file or entering a folder twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from alignserve.datasets.sources.files import kind_of_mode

HIDDEN = "hidden"
SYSTEM_FOLDERS = frozenset(
    {"$RECYCLE.BIN", "@eaDir", "__MACOSX", "__pycache__", "lost+found", "System Volume Information"}
)
"""Folders that systems make for themselves; none of their files was put there by the user."""

_FOLDER = "folder"


class Folder(NamedTuple):
    """A folder on a walk.

    Attributes:
        path: Of the folder.
        files: Names of the files in it, sorted by their bytes.
        folders: Names of the folders in it, sorted by their bytes.
    """

    path: str
    files: list[str]
    folders: list[str]


@dataclass(slots=True)
class Walk:
    """A walk through folders, and what it left out.

    Hidden files and folders are left out, those of `SYSTEM_FOLDERS`, everything that is not a file (named
    pipes, sockets, devices), and links to folders: so a loop of links cannot trap the walk, and a link in a
    dataset from elsewhere cannot lead it out of the folder. Links to files are followed. A link to nothing
    counts as a file, so that it is missed when it is read.

    Attributes:
        skipped: Number of entries that were left out, by kind.
        problems: Folders that could not be read, and why.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def folders(self, path: str) -> Iterator[Folder]:
        """Yields a folder and those below it, each before the folders in it.

        Needs memory for the names in one folder at a time, and for the names of folders next to those above
        it.
        """
        waiting = [path]
        while waiting:
            folder = self._read(waiting.pop())
            yield folder
            waiting += (os.path.join(folder.path, name) for name in reversed(folder.folders))  # noqa: PTH118

    def _read(self, path: str) -> Folder:
        folder = Folder(path, [], [])
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    self._sort_in(entry, folder)
        except OSError as error:
            self.problems.append(f"{path}: {error.strerror}")
        folder.files.sort(key=os.fsencode)
        folder.folders.sort(key=os.fsencode)
        return folder

    def _sort_in(self, entry: os.DirEntry[str], folder: Folder) -> None:
        if entry.name.startswith("."):
            self.skipped[HIDDEN] += 1
        elif entry.name in SYSTEM_FOLDERS:
            self.skipped[entry.name] += 1
        elif (kind := _kind(entry)) is None:
            folder.files.append(entry.name)
        elif kind == _FOLDER:
            folder.folders.append(entry.name)
        else:
            self.skipped[kind] += 1


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Returns what an entry is, and `None` for a file, a link to one, or a link to nothing."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return _FOLDER
        if entry.is_dir():
            return "link to a folder"
        return None if entry.is_file() else kind_of_mode(entry.stat().st_mode)
    except OSError:  # a link to nothing or in a loop, or a file that vanished
        return None
