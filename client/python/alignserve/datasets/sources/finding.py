"""Finds the files of the sources that were given, and chooses those that are data."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignserve.datasets.source import SourceError
from alignserve.datasets.sources import img2dataset
from alignserve.datasets.sources.files import FileError, is_there, kind_of_mode
from alignserve.datasets.sources.globs import expand, is_pattern
from alignserve.datasets.sources.image_files import METADATA_SUFFIX, SEPARATOR
from alignserve.datasets.sources.keys import key_of_name
from alignserve.datasets.sources.kinds import Kind, Unread, kind_of_file, kind_of_name, suffix_of, unread
from alignserve.datasets.sources.options import SourceOptions
from alignserve.datasets.walk import Folder, Walk

_OUTPUT_FILES, _OUTPUT_FOLDER = frozenset({"manifest.json", "failures.jsonl"}), "records"  # of our jobs
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(slots=True)
class Found:
    """The files of some sources.

    Attributes:
        base: The folder that names and keys start from: the source, if it is one folder, and otherwise the
            lowest folder that holds all sources.
        files: By kind, in order; a path, or for images the paths of a block of files, joined by `SEPARATOR`.
            All paths are below the base.
        has_texts: Whether an image file has a text next to it.
        skipped: Number of files that are not data, by kind.
        problems: What could not be read.
    """

    base: str
    files: list[tuple[Kind, str]] = field(default_factory=list)
    has_texts: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def find(paths: Sequence[str | Path], options: SourceOptions) -> Found:
    """Returns the files of sources: folders, files, and patterns of both.

    A source that is given twice, or lies in another one, is read once and counts as skipped.

    Raises:
        SourceError: No source is given, or one is missing or cannot be data, or it is not clear which of its
            files are.
    """
    if not paths:
        raise SourceError("no source is given")
    walk = Walk()
    given: list[str] = []
    patterns: dict[str, str] = {}  # by what they match
    for source in map(Path, paths):
        expanded = _expanded(source, walk)
        if is_pattern(source):
            links = {path for path in expanded if os.path.islink(path) and os.path.isdir(path)}  # noqa: PTH112, PTH114
            walk.skipped["link to a folder"] += len(links)  # as in folders: it may lead back
            expanded = [path for path in expanded if path not in links]
            patterns.update(dict.fromkeys(expanded, str(source)))
        given += expanded
    folders = {path for path in given if os.path.isdir(path)}  # noqa: PTH112 — a `str`
    distinct = _distinct(given, folders)
    finder = _Finder(Found(_base(distinct, folders)), options, walk)
    finder.look_at_matches(patterns, folders)
    for path in distinct:
        if path in folders:
            finder.add_folder(path)
        elif path not in patterns:
            finder.add_file(path)
        elif finder.takes(path):
            finder.add_match(path, patterns[path])
    finder.finish_images()
    found = finder.found
    found.skipped = +(found.skipped + walk.skipped)
    found.problems += dict.fromkeys(walk.problems)  # a pattern may come to a folder twice
    if len(given) > len(distinct):
        found.skipped["given twice"] += len(given) - len(distinct)
    return found


class _Finder:
    def __init__(self, found: Found, options: SourceOptions, walk: Walk) -> None:
        self.found = found
        self._options = options
        self._walk = walk
        self._prefix_length = len(os.path.join(found.base, ""))  # noqa: PTH118
        self._given_images: list[str] = []
        self._ignored: set[str] = set()
        self._kinds: dict[str, _Kinds] = {}  # of the matches of each pattern
        self._text_suffix = f".{options.text_column or 'txt'}"

    def add_file(self, path: str) -> Kind:
        """Takes a file that was given as a source, and returns its kind."""
        kind = self._options.kind or kind_of_file(Path(path), self._options.image_suffixes)
        if kind is not Kind.IMAGES:
            self.finish_images()
            self.found.files.append((kind, self._below_base(path)))
            return kind
        stem = os.path.splitext(path)[0]  # noqa: PTH122
        self.found.has_texts = self.found.has_texts or os.path.lexists(stem + self._text_suffix)
        self._given_images.append(self._below_base(path))
        return kind

    def add_match(self, path: str, pattern: str) -> None:
        """Takes a file that a pattern matches; all of them have to be of one kind, as in a folder."""
        kinds = self._kinds.setdefault(pattern, _Kinds())
        kinds.add(self.add_file(path), path)
        kinds.only(pattern)

    def look_at_matches(self, paths: Iterable[str], folders: Container[str]) -> None:
        """Has `takes` leave out what is next to the data; see `_not_data`."""
        parents: dict[str, Folder] = {}
        for path in paths:
            parent, name = os.path.split(path)
            folder = parents.setdefault(parent, Folder(parent, [], []))
            (folder.folders if path in folders else folder.files).append(name)
        for folder in parents.values():
            names = self._not_data(folder)
            self._ignored.update(os.path.join(folder.path, name) for name in names)  # noqa: PTH118

    def takes(self, path: str) -> bool:
        """Returns whether a file that a pattern matches is data; counts or names it otherwise.

        So `photos/*` reads what `photos` does, and a file that is named by itself is refused instead.
        """
        if path in self._ignored:
            return False
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116
        except OSError:
            mode = stat.S_IFREG  # a link to nothing, which is missed when it is read
        suffix = suffix_of(path) or "without suffix"
        if not stat.S_ISREG(mode):
            self.found.skipped[kind_of_mode(mode)] += 1
            return False
        if (other := unread(path)) is not None:
            self._leave_out(path, other, None)
            return False
        by_name = kind_of_name(path, self._options.image_suffixes)
        if by_name is not None:
            is_taken = self._options.kind in (None, by_name)
            self.found.skipped[suffix] += not is_taken
            return is_taken
        if suffix in (self._text_suffix, METADATA_SUFFIX) and self._is_next_to_image(path):
            return False
        if self._options.kind is not None:
            return True
        try:
            kind_of_file(Path(path), self._options.image_suffixes)
        except SourceError as error:
            if isinstance(error.__cause__, FileError):
                self.found.problems.append(str(error))
            else:
                self.found.skipped[suffix] += 1
            return False
        return True

    def _is_next_to_image(self, path: str) -> bool:
        stem = os.path.splitext(path)[0]  # noqa: PTH122
        suffixes = self._options.image_suffixes
        return any(os.path.lexists(stem + form) for suffix in suffixes for form in (suffix, suffix.upper()))

    def add_folder(self, path: str) -> None:
        """Takes the files of the one kind that a folder holds; if the kind was chosen, counts the others."""
        self.finish_images()
        contents = _Contents(self._options.files_per_block)
        for folder in self._walk.folders(path):
            self._sort_in(folder, contents)
        taken = self._options.kind or contents.kinds.only(path)
        for kind, counts in contents.suffixes.items():
            if kind is not taken:
                self.found.skipped.update(counts)
        for file, what in contents.unread:
            self._leave_out(file, what, taken)
        if taken is not None:
            self.found.files += [(taken, paths) for paths in contents.files(taken)]

    def finish_images(self) -> None:
        """Ends the block of image files that were given as sources."""
        blocks = _Blocks(self._options.files_per_block)
        blocks.add(self._given_images)
        self.found.files += [(Kind.IMAGES, block) for block in blocks.finished()]
        self._given_images.clear()

    def _leave_out(self, path: str, what: Unread, taken: Kind | None) -> None:
        """Names a file that may hold rows, or counts it if another kind was chosen."""
        if self._options.kind not in (None, what.kind):
            self.found.skipped[what.suffix] += 1
            return
        or_leave = "" if taken in (None, what.kind) else f", or leave it out with --kind {taken}"
        self.found.problems.append(f"{path} {what.advice}{or_leave}")

    def _not_data(self, folder: Folder) -> set[str]:
        """Returns the names of files that img2dataset or a job of ours has written next to the data."""
        is_asked_for = self._options.kind is Kind.PARQUET
        shards = img2dataset.look(folder, self._options.image_suffixes, reads_metadata=is_asked_for)
        self.found.skipped.update(shards.skipped)
        self.found.problems += shards.problems
        if not _OUTPUT_FILES.issubset(folder.files) or _OUTPUT_FOLDER not in folder.folders:
            return shards.ignored
        self.found.skipped["account of alignserve"] += len(_OUTPUT_FILES)
        return shards.ignored | _OUTPUT_FILES

    def _below_base(self, path: str) -> str:
        return path[self._prefix_length :]

    def _sort_in(self, folder: Folder, contents: _Contents) -> None:
        """Sorts the files of a folder by their kinds, and counts those of no kind."""
        ignored = self._not_data(folder)
        others = []
        images = set()
        for name in folder.files:
            if name in ignored:
                continue
            kind = kind_of_name(name, self._options.image_suffixes)
            if kind is None:
                others.append(name)
                continue
            if kind is Kind.IMAGES:
                images.add(os.path.splitext(name)[0])  # noqa: PTH122
            contents.add(kind, self._below_base(os.path.join(folder.path, name)))  # noqa: PTH118
        for name in others:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if (what := unread(name)) is not None:
                contents.unread.append((os.path.join(folder.path, name), what))  # noqa: PTH118
            elif suffix == self._text_suffix and stem in images and self._options.text_column != "":
                self.found.has_texts = True
            elif not (suffix == METADATA_SUFFIX and stem in images and self._options.columns):
                self.found.skipped[suffix.lower() or "without suffix"] += 1


class _Contents:
    """The files of a folder that can be data."""

    def __init__(self, files_per_block: int) -> None:
        self.kinds = _Kinds()
        self.suffixes: dict[Kind, Counter[str]] = {}
        self.unread: list[tuple[str, Unread]] = []
        self._images = _Blocks(files_per_block)
        self._others: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, path: str) -> None:
        self.kinds.add(kind, path)
        self.suffixes.setdefault(kind, Counter())[suffix_of(path)] += 1
        if kind is Kind.IMAGES:
            self._images.add([path])
        else:
            self._others.setdefault(kind, []).append(path)

    def files(self, kind: Kind) -> list[str]:
        """Returns the files of a kind, or the blocks of images."""
        return self._images.finished() if kind is Kind.IMAGES else self._others.get(kind, [])


class _Kinds:
    """The kinds of files in a folder, or of those that a pattern matches."""

    def __init__(self) -> None:
        self._counts: Counter[Kind] = Counter()
        self._first: dict[Kind, str] = {}

    def add(self, kind: Kind, path: str) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, path)

    def only(self, place: str) -> Kind | None:
        """Returns the one kind, or `None` without files.

        Raises:
            SourceError: There are several. They may be the same rows twice, or one may describe the other.
        """
        kinds = sorted(self._counts)
        if len(kinds) > 1:
            counts = ", ".join(
                f"{self._counts[kind]} of {kind} (such as {key_of_name(self._first[kind])})" for kind in kinds
            )
            choices = " or ".join(f"--kind {kind}" for kind in kinds)
            raise SourceError(
                f"{place} holds files of several kinds: {counts}; choose {choices}, or give the files of one"
            )
        return next(iter(kinds), None)


class _Blocks:
    """Paths in blocks, which need far less memory than as objects."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: list[str] = []
        self._open: list[str] = []

    def add(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._open.append(path)
            if len(self._open) == self._size:
                self._close()

    def finished(self) -> list[str]:
        """Returns the blocks, the last of which may be smaller."""
        self._close()
        return self._blocks

    def _close(self) -> None:
        if self._open:
            self._blocks.append(SEPARATOR.join(self._open))
            self._open = []


def _expanded(path: Path, walk: Walk) -> list[str]:
    if _URL.match(str(path)):
        raise SourceError(f"{path} is a URL; only local files are read")
    if is_pattern(path):
        if matches := expand(path, walk):
            return matches
        raise SourceError("; ".join((f"{path} matches no file", *walk.problems)))
    try:
        if not is_there(path):
            raise SourceError(f"{path} does not exist")
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    return [os.path.normpath(path.absolute())]  # keeps links, so that names are those that the user knows


def _distinct(paths: Sequence[str], folders: set[str]) -> list[str]:
    """Returns the paths that are neither given before nor in a folder that is given."""
    first = dict.fromkeys(paths)
    if not folders:
        return list(first)
    return [path for path in first if folders.isdisjoint(map(str, Path(path).parents))]


def _base(paths: Sequence[str], folders: set[str]) -> str:
    return os.path.commonpath({path if path in folders else os.path.dirname(path) for path in paths})  # noqa: PTH120
