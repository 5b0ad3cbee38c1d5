"""The kinds of source files, recognized by content and by suffix."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from alignserve.datasets.source import SourceError
from alignserve.datasets.sources.files import FileError, open_regular


class Kind(StrEnum):
    """What a source file holds."""

    IMAGES = "images"
    PARQUET = "parquet"
    CSV = "csv"
    JSON_LINES = "json-lines"
    TAR = "tar"


BY_SUFFIX = {
    ".parquet": Kind.PARQUET,
    ".pq": Kind.PARQUET,
    ".csv": Kind.CSV,
    ".tsv": Kind.CSV,
    ".tab": Kind.CSV,
    ".jsonl": Kind.JSON_LINES,
    ".ndjson": Kind.JSON_LINES,
    ".tar": Kind.TAR,
}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_COMPRESSED_TARS = (".tgz", ".tbz2", ".txz")
_ARCHIVES = (".zip", ".7z", ".rar")
_FORMATS = (
    *(".arrow", ".feather", ".orc", ".avro", ".tfrecord", ".tfrecords", ".h5", ".hdf5", ".mdb"),
    *(".xlsx", ".xls", ".ods"),
)
_COMPRESSED_HEADS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
_IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF")
_TAR_MAGIC = slice(257, 262)
_HEAD_BYTES = 512


def suffix_of(name: str) -> str:
    """Returns the suffix of a file's name in lower case, such as `.jpg`."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 — costs a tenth of a Path, once per file


class Unread(NamedTuple):
    """A file that may hold rows, and is not read.

    Attributes:
        suffix: Such as `.tar.gz`.
        kind: Of the compressed table or tar; `None` if the name does not say.
        advice: For people: what it is, and what to do.
    """

    suffix: str
    kind: Kind | None
    advice: str


def unread(name: str) -> Unread | None:
    """Returns what a compressed table or tar, an archive or a file of another format is by its name.

    Returns:
        `None` for files that are read, and for those that hold no rows of images or texts.
    """
    stem, dot, last = name.lower().rpartition(".")
    suffix = dot + last
    compressed = "is compressed; decompress it first"
    if suffix in _COMPRESSED_TARS:
        return Unread(suffix, Kind.TAR, compressed)
    inner = suffix_of(stem)
    if suffix in _COMPRESSIONS and inner in BY_SUFFIX:
        return Unread(inner + suffix, BY_SUFFIX[inner], compressed)
    if suffix in _ARCHIVES:
        return Unread(suffix, None, "is an archive; unpack it first")
    return Unread(suffix, None, "is in a format that is not read; convert it") if suffix in _FORMATS else None


def kind_of_name(name: str, image_suffixes: frozenset[str]) -> Kind | None:
    """Returns the kind that a file's suffix names, in upper or lower case."""
    suffix = suffix_of(name)
    return Kind.IMAGES if suffix in image_suffixes else BY_SUFFIX.get(suffix)


def kind_of_file(path: Path, image_suffixes: frozenset[str]) -> Kind:
    """Returns the kind of a file that was given by its path: by its first bytes, then by its suffix.

    Raises:
        SourceError: The file cannot be read, is compressed, or is of a kind that is not read.
    """
    by_name = kind_of_name(path.name, image_suffixes)
    if by_name is Kind.IMAGES:
        return by_name  # the server decides what its content is
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except FileError as error:
        raise SourceError(f"{path}: {error.message}") from error
    if head.startswith(_COMPRESSED_HEADS):
        raise SourceError(f"{path} is compressed; decompress it first")
    if head.startswith(b"PAR1"):
        return Kind.PARQUET
    if head[_TAR_MAGIC] == b"ustar":
        return Kind.TAR
    if by_name is not None:
        return by_name
    if head.startswith(_IMAGE_HEADS):
        return Kind.IMAGES
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        raise SourceError(f"{path} is a JSON array; write one object per line: jq -c '.[]'")
    if start.startswith(b"{"):
        return Kind.JSON_LINES
    kinds = ", ".join(Kind)
    raise SourceError(f"{path} is of an unknown kind; name its kind: {kinds}")
