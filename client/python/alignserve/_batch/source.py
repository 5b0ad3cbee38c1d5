"""The file of requests, line by line, and what must be known of it before anything is sent."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from alignserve._batch.request import custom_id_of
from alignserve._batch.uniqueness import RepeatedIds

MAX_LINE_BYTES = 64 << 20  # of a line that is parsed; servers take less, by default 16 MiB
_HEAD_BYTES = 1 << 16  # that is kept of a longer line
_PIECE_BYTES = 1 << 20
_UTF8_MARK = b"\xef\xbb\xbf"
_BLANKS = re.compile(rb"\s*\Z")


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank.

    Attributes:
        number: In the file, from 1, as editors count.
        content: The line; only its beginning if it is too long.
        is_too_long: Whether it has more than `MAX_LINE_BYTES`.
        is_ended: Whether a line break follows; the last line may have none.
    """

    number: int
    content: bytes
    is_too_long: bool = False
    is_ended: bool = True


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file of requests has.

    Attributes:
        sha256: Of the whole file.
        requests: Number of lines that are not blank.
        blank: Number of lines that are.
    """

    sha256: str
    requests: int
    blank: int


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Source:
    """A file of requests. It is read several times, so it must be a regular file that does not change."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            OSError: It cannot be opened.
            ValueError: It is a pipe or a device.
        """
        self.path = path
        self._file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 — closed by `__exit__`
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise ValueError(f"{path} is not a regular file; a batch is read more than once")
        self._state = self._present_state()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def lines(self, skip: int = 0) -> Iterator[Line]:
        """Yields the lines that are not blank, without the first `skip` of them.

        Raises:
            OSError: The file cannot be read.
            ValueError: It has changed since it was opened.
        """
        for line in self._lines():
            if line is None:
                continue
            if skip:
                skip -= 1
            else:
                yield line

    def survey(self) -> Survey:
        """Reads the whole file.

        Raises:
            OSError, ValueError: As for `lines`.
        """
        digest = hashlib.sha256()
        counts = {True: 0, False: 0}
        for line in self._lines(digest):
            counts[line is None] += 1
        return Survey(digest.hexdigest(), counts[False], counts[True])

    def check_ids(self, folder: Path) -> None:
        """Checks that no two requests have the same `custom_id`.

        Args:
            folder: For a temporary file with 8 bytes for each request.

        Raises:
            OSError: The file cannot be read, or the temporary file cannot be written.
            ValueError: An id comes twice, or the file has changed since it was opened.
        """
        with RepeatedIds(folder) as ids:
            for line in self.lines():
                if (custom_id := custom_id_of(line.content)) is not None:
                    ids.add(custom_id)
            if not (suspects := ids.repeated()):
                return
            seen: dict[str, int] = {}
            for line in self.lines():
                custom_id = custom_id_of(line.content)
                if custom_id is None or ids.digest(custom_id) not in suspects:
                    continue
                if custom_id in seen:
                    raise ValueError(
                        f"{self.path}: lines {seen[custom_id]} and {line.number} have the same custom_id "
                        f"{custom_id!r}; nothing was sent"
                    )
                seen[custom_id] = line.number

    def _lines(self, digest: _Digest | None = None) -> Iterator[Line | None]:
        """Yields each line; None for a blank one."""
        self._file.seek(0)
        number = 0
        while content := self._file.readline(MAX_LINE_BYTES):
            number += 1
            if digest is not None:
                digest.update(content)
            is_too_long = len(content) == MAX_LINE_BYTES and not content.endswith(b"\n")
            is_ended = content.endswith(b"\n")
            if is_too_long:
                content = content[:_HEAD_BYTES]
                is_ended = self._skip_rest(digest)
            if number == 1:
                content = content.removeprefix(_UTF8_MARK)
            is_blank = not is_too_long and _BLANKS.match(content) is not None
            yield None if is_blank else Line(number, content, is_too_long, is_ended)
        if self._present_state() != self._state:
            raise ValueError(f"{self.path} changed while it was read; start again")

    def _skip_rest(self, digest: _Digest | None) -> bool:
        """Reads to the end of a line, and returns whether it has a line break."""
        while piece := self._file.readline(_PIECE_BYTES):
            if digest is not None:
                digest.update(piece)
            if piece.endswith(b"\n"):
                return True
        return False

    def _present_state(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe would wait for its writer
