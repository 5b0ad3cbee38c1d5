"""Reads the lines of a file of bytes, with their numbers and positions, in bounded memory."""

from __future__ import annotations

from typing import BinaryIO

BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20


class Lines:
    """The lines of a file from a position on. They end with a line feed, and with nothing else.

    Attributes:
        number: Of the next line, from 1.
        position: Of the next line, in bytes.
    """

    def __init__(self, file: BinaryIO, position: int) -> None:
        """Starts at a position behind a line, or at 0; counts the lines before it, which reads them."""
        self._file = file
        self.number = 1
        self.position = 0
        while (left := position - self.position) > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            self.number += chunk.count(b"\n")
            self.position += len(chunk)

    def next(self, max_bytes: int) -> bytes:
        """Returns the next line with its end, at most this much of it, or nothing at the end of the file."""
        line = self._file.readline(max(max_bytes, 0))
        self._advance(line)
        return line

    def finish_line(self) -> None:
        """Skips the rest of a line of which `next` returned the beginning."""
        while (rest := self._file.readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
            self._advance(rest)
        self._advance(rest)

    def go_back(self, position: int, number: int) -> None:
        """Continues with an earlier line."""
        self._file.seek(position)
        self.position, self.number = position, number

    def _advance(self, read: bytes) -> None:
        self.position += len(read)
        self.number += read.endswith(b"\n")
