"""Finds strings that come twice among any number of them, in bounded memory.

Each string leaves 8 bytes in a temporary file: a hash with a key that is new in each run, so that no input
can be made to collide. The file is then read once for each range of hashes that fits into memory. 100 million
ids take 800 MB of disk, 12 readings, and about 150 MB of memory.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES = 8
_BUFFER_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
_MAX_SUSPECTS = 1000

_Hashes = NDArray[np.uint64]


class RepeatedIds:
    """Takes ids one by one, and says which of them may have come twice.

    Args:
        folder: For the temporary file, which has no name and vanishes with the process.
        part_hashes: Number of hashes that are compared in memory at a time, about.
    """

    def __init__(self, folder: Path, part_hashes: int = 8 << 20) -> None:
        self._key = secrets.token_bytes(16)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 — closed by `__exit__`
        self._buffer = bytearray()
        self._part_hashes = part_hashes

    def __enter__(self) -> RepeatedIds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def digest(self, custom_id: str) -> bytes:
        """Returns the hash of an id; two ids rarely have the same."""
        data = custom_id.encode(errors="surrogatepass")
        return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=self._key).digest()

    def add(self, custom_id: str) -> None:
        """Takes an id.

        Raises:
            OSError: The temporary file cannot be written.
        """
        self._buffer += self.digest(custom_id)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def repeated(self) -> set[bytes]:
        """Returns hashes that came twice: of ids that came twice, and by rare chance of two different ones.

        If there are very many, only some are returned.

        Raises:
            OSError: The temporary file cannot be written or read.
        """
        self._flush()
        parts = 1 + self._file.tell() // _DIGEST_BYTES // self._part_hashes
        found: set[bytes] = set()
        for part in range(parts):
            found.update(each.tobytes() for each in self._repeated_in(part, parts))
            if len(found) >= _MAX_SUSPECTS:
                break
        return found

    def _flush(self) -> None:
        self._file.write(self._buffer)
        self._buffer.clear()

    def _repeated_in(self, part: int, parts: int) -> _Hashes:
        width = (1 << 64) // parts + 1
        kept: list[_Hashes] = []
        self._file.seek(0)
        while block := self._file.read(_BLOCK_BYTES):
            hashes = np.frombuffer(block, np.uint64)
            mine = np.sort(hashes[hashes // np.uint64(width) == part]) if parts > 1 else np.sort(hashes)
            if len(repeated := _repeated(mine)):  # one id, a billion times, must not fill the memory
                return repeated
            kept.append(mine)
        return _repeated(np.sort(np.concatenate(kept))) if kept else np.empty(0, np.uint64)


def _repeated(hashes: _Hashes) -> _Hashes:
    """Returns the first of the sorted hashes that come more than once."""
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_MAX_SUSPECTS]
