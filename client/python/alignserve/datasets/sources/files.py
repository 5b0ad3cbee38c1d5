"""Reads regular files only, and never more of them than a limit.

A named pipe, a socket or a device never blocks: it is refused before it is opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
}
# Should a file become a named pipe between the check and the opening, opening it still does not wait for a
# writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_DIGEST_EDGE_BYTES = 64 << 10
BUFFER_BYTES = 1 << 20
"""Of a file that is read from its beginning to its end."""


class FileError(Exception):
    """A file cannot be read.

    Attributes:
        reason: For programs: NOT_A_FILE, UNREADABLE, TOO_LARGE.
        message: For people, without the file's name.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def kind_of_mode(mode: int) -> str:
    """Returns what a file that is not regular is, such as `named pipe`."""
    return _KINDS.get(stat.S_IFMT(mode), "special file")


def is_there(path: str | Path) -> bool:
    """Returns whether a path leads to something, be it a link to nothing.

    Raises:
        OSError: It cannot be told, such as in a folder that may not be entered.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have this name
        return False
    return True


@contextmanager
def open_regular(path: str | Path, buffer_bytes: int = BUFFER_BYTES) -> Iterator[BinaryIO]:
    """Opens a regular file, or a link to one.

    Args:
        path: Of the file.
        buffer_bytes: As many are read at a time, also after a jump to another position.

    Raises:
        FileError: It is something else, or cannot be opened.
    """
    try:
        _check_regular(os.stat(path))  # noqa: PTH116 — a `str` costs less than a Path, once per image
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        raise FileError("UNREADABLE", _explained(error)) from error
    with open(descriptor, "rb", buffering=buffer_bytes) as file:  # noqa: PTH123 — of a descriptor
        _check_regular(os.fstat(descriptor))
        yield file


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """Returns the content of a regular file.

    Raises:
        FileError: It cannot be read, or is larger than the limit; then it is not read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise FileError("TOO_LARGE", f"it has {size} bytes, limit {max_bytes}")
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise FileError("UNREADABLE", _explained(error)) from error
    if len(content) > max_bytes:  # it grew, or its size was not known
        raise FileError("TOO_LARGE", f"it has more than {max_bytes} bytes")
    return content


def digest_of(path: Path) -> str:
    """Returns a digest of a file's size, time of change, and first and last 64 KiB.

    Raises:
        FileError: It cannot be read.
    """
    with open_regular(path) as file:
        try:
            status = os.fstat(file.fileno())
            digest = blake2b(f"{status.st_size} {status.st_mtime_ns}".encode(), digest_size=16)
            digest.update(file.read(_DIGEST_EDGE_BYTES))
            file.seek(max(_DIGEST_EDGE_BYTES, status.st_size - _DIGEST_EDGE_BYTES))
            digest.update(file.read(_DIGEST_EDGE_BYTES))
        except OSError as error:
            raise FileError("UNREADABLE", _explained(error)) from error
    return digest.hexdigest()


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileError("NOT_A_FILE", f"it is a {kind_of_mode(status.st_mode)}, not a file")


def _explained(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
