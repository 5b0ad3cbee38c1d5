"""Finds the members of tars, and the samples that they form, by their headers."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignserve.datasets.walk import SYSTEM_FOLDERS

_BLOCK_BYTES = tarfile.BLOCKSIZE
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"X")
_TYPE = slice(156, 157)  # of a header
_MAX_EXTENSIONS = 8  # headers that describe the next one; writers need three at most
_MAX_EXTENSION_BYTES = 1 << 20
_ZEROS = bytes(_BLOCK_BYTES)


class Member(NamedTuple):
    """A member of a tar that belongs to a sample.

    Attributes:
        key: Of the sample: the member's path up to its suffix.
        suffix: In lower case, without the dot.
        info: The member.
    """

    key: str
    suffix: str
    info: tarfile.TarInfo


class TarBroken(Exception):
    """A tar breaks off or is damaged; the message says where.

    Attributes:
        key: Of the sample whose member is cut off, or `None` if it cannot be told.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class TarReader:
    """The members of an open tar, from any header on.

    Archives that were appended to one another are read to the end of the last.

    Attributes:
        left_out: The name of the first file that belongs to no sample, or `None` as long as there is none.
    """

    def __init__(self, file: BinaryIO, *, splits_at_first_dot: bool) -> None:
        """Takes an open tar, and whether suffixes begin at the first dot of a name, not at the last."""
        self._file = file
        self._size = file.seek(0, 2)
        self._splits_at_first_dot = splits_at_first_dot
        self.left_out: str | None = None
        # It would read the first header at once, before it was checked; so it is made on an empty archive.
        self._tar = tarfile.TarFile(fileobj=BytesIO(_ZEROS), encoding="utf-8", errors="surrogateescape")
        self._tar.fileobj = file

    def members(self, offset: int = 0) -> Iterator[tuple[int, Member]]:
        """Yields the members of samples with the position of their header.

        Hidden files, those of system folders, folders and files without a suffix belong to no sample.

        Raises:
            TarBroken: After the last member that is whole.
        """
        is_ended = False
        while offset < self._size:
            self._file.seek(offset)
            block = self._file.read(_BLOCK_BYTES)
            if not block.strip(b"\0"):
                is_ended = is_ended or len(block) == _BLOCK_BYTES
                offset += len(block)
                continue
            is_ended = False
            info, end = self._next(offset, block)
            if (member := self._member(info)) is not None:
                yield offset, member
            elif info.isreg() and self.left_out is None:
                self.left_out = info.name
            offset = end
        if not is_ended:
            raise TarBroken(f"it breaks off at byte {offset}, without the mark of its end")

    def content(self, info: tarfile.TarInfo) -> bytes:
        """Returns the content of a regular member.

        Raises:
            OSError: It cannot be read.
            tarfile.TarError: Its map of gaps is damaged.
        """
        file = self._tar.extractfile(info)
        return b"" if file is None else file.read()

    def _next(self, offset: int, block: bytes) -> tuple[tarfile.TarInfo, int]:
        """Returns the member whose header begins with a block at a position, and where it ends."""
        if block[_TYPE] in _EXTENSIONS:
            self._check_extensions(offset)
        self._file.seek(offset)
        try:
            info = tarfile.TarInfo.fromtarfile(self._tar)
        except (tarfile.TarError, ValueError, OSError, RecursionError) as error:
            raise TarBroken(f"its header at byte {offset} is damaged or cut off: {error}") from error
        end = self._tar.offset
        if not offset < end <= self._size:
            member = self._member(info)
            message = f"it breaks off at byte {self._size}, in '{info.name}', which should end at byte {end}"
            raise TarBroken(message, None if member is None else member.key)
        return info, end

    def _check_extensions(self, offset: int) -> None:
        """Refuses headers that would make tarfile read without a limit."""
        for _ in range(_MAX_EXTENSIONS):
            self._file.seek(offset)
            block = self._file.read(_BLOCK_BYTES)
            if block[_TYPE] not in _EXTENSIONS:
                return
            try:
                size = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape").size
            except tarfile.HeaderError as error:
                raise TarBroken(f"its header at byte {offset} is damaged or cut off: {error}") from error
            if not 0 <= size <= _MAX_EXTENSION_BYTES:
                raise TarBroken(
                    f"its header at byte {offset} has {size} bytes of names, limit {_MAX_EXTENSION_BYTES}"
                )
            offset += _BLOCK_BYTES + -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
        raise TarBroken(f"more than {_MAX_EXTENSIONS} headers before byte {offset} describe one member")

    def _member(self, info: tarfile.TarInfo) -> Member | None:
        name = info.name.removeprefix("./")
        folders, _, last = name.rpartition("/")
        parts = folders.split("/") if folders else []
        if info.isdir() or last.startswith(".") or any(_is_left_out(part) for part in parts):
            return None
        if not parts and last.startswith("__") and last.endswith("__"):  # webdataset's own
            return None
        stem, dot, suffix = last.partition(".") if self._splits_at_first_dot else last.rpartition(".")
        return Member(name[: len(name) - len(suffix) - 1], suffix.lower(), info) if dot and stem else None


def _is_left_out(folder: str) -> bool:
    return folder in SYSTEM_FOLDERS or (folder.startswith(".") and folder not in (".", ".."))


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Where the samples of a tar are, in the order of their first members.

    The members of a sample usually follow one another; where they lie apart, they are joined. The index needs
    24 bytes for each run of members of one key, whatever their names.

    Attributes:
        broken: How the tar breaks off, or `None` if it is whole. The run of members where it does, which may
            lack some, is not in the index.
    """

    broken: str | None
    _offsets: NDArray[np.uint64]  # (runs,), of their first headers, sorted by sample
    _starts: NDArray[np.int64]  # (samples + 1,), of their first runs in `_offsets`

    @classmethod
    def of(cls, reader: TarReader) -> TarIndex:
        """Returns the index of a tar, by its headers."""
        offsets, hashes = array("Q"), array("Q")
        broken: TarBroken | None = None
        last: str | None = None
        try:
            for offset, member in reader.members():
                if member.key != last:
                    last = member.key
                    digest = blake2b(last.encode("utf-8", "surrogateescape"), digest_size=16).digest()
                    offsets.append(offset)
                    hashes.frombytes(digest)
        except TarBroken as error:
            broken = error
        lacks_some = broken is not None and broken.key in (None, last)
        count = max(0, len(offsets) - lacks_some)
        pairs = np.frombuffer(hashes, np.uint64).reshape(-1, 2)[:count]
        return cls(
            None if broken is None else str(broken),
            *_by_sample(np.frombuffer(offsets, np.uint64)[:count], pairs),
        )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def runs(self, sample: int) -> list[int]:
        """Returns the positions of the first headers of a sample's runs."""
        return [int(offset) for offset in self._offsets[self._starts[sample] : self._starts[sample + 1]]]


def _by_sample(
    offsets: NDArray[np.uint64], pairs: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns the offsets of runs sorted by sample, and where each sample begins, by the hashes of keys."""
    if len(offsets) == 0:
        return offsets, np.zeros(1, np.int64)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable, so that runs of a key stay in their order
    is_new = np.concatenate(([True], (pairs[order][1:] != pairs[order][:-1]).any(axis=1)))
    first_of_run = np.empty(len(order), np.int64)
    first_of_run[order] = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))]
    by_sample = np.argsort(first_of_run, kind="stable")
    firsts = first_of_run[by_sample]
    starts = np.flatnonzero(np.concatenate(([True], firsts[1:] != firsts[:-1], [True])))
    return offsets[by_sample], starts
