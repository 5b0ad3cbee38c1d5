"""The usage of keys by all processes of a server that take calls, so that a quota is one for all of them."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignserve_server.access.usage import LONG_AGO, OwnUsage, Usage

_KEYS = 2048  # with a place; later ones are counted in each process
_DIGEST_BYTES = 16
_TIME = struct.Struct("<d")
_CALLS = struct.Struct("<i")


class SharedUsages:
    """The usage of keys in several processes of this machine, in a file that they map.

    A place holds the digest of a key's name, the time until which its rate has paid, and the number of its
    calls in progress in each process, so that those of a process that was killed can be dropped.
    """

    def __init__(self, path: Path, process: int, processes: int) -> None:
        """Opens the file, which the first process makes; drops the calls of this process's predecessor.

        Raises:
            OSError: It cannot be opened.
        """
        self._columns = range(
            _DIGEST_BYTES + _TIME.size, _DIGEST_BYTES + _TIME.size + processes * _CALLS.size, _CALLS.size
        )
        self._own_column = self._columns[process]
        self._place_bytes = self._columns.stop
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = _KEYS * self._place_bytes
        with self._locked():
            if os.fstat(self._descriptor).st_size != size:
                # With its blocks: if there were none, writing to the map would end the process.
                os.posix_fallocate(self._descriptor, 0, size)
            self._memory = mmap.mmap(self._descriptor, size)
            for place in range(0, size, self._place_bytes):
                _CALLS.pack_into(self._memory, place + self._own_column, 0)
        self._known: dict[str, Usage] = {}

    def __getitem__(self, name: str) -> Usage:
        """Returns the usage of a key; see `Usages`."""
        usage = self._known.get(name)
        if usage is None:
            place = self._place(hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest())
            usage = self._known[name] = OwnUsage() if place is None else _SharedUsage(self, place)
        return usage

    def _place(self, digest: bytes) -> int | None:
        """Returns where a key's place begins; takes a free one for a new key. None if there is none."""
        first = int.from_bytes(digest[:4], "little")
        with self._locked():
            for number in range(_KEYS):
                place = (first + number) % _KEYS * self._place_bytes
                found = self._memory[place : place + _DIGEST_BYTES]
                if found == digest:
                    return place
                if not any(found):
                    self._memory[place : place + _DIGEST_BYTES] = digest
                    _TIME.pack_into(self._memory, place + _DIGEST_BYTES, LONG_AGO)
                    return place
        return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Excludes the other processes. The kernel ends the lock of one that is killed."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _calls(self, place: int) -> int:
        return sum(_CALLS.unpack_from(self._memory, place + column)[0] for column in self._columns)

    def _add_calls(self, place: int, calls: int) -> None:
        at = place + self._own_column
        _CALLS.pack_into(self._memory, at, _CALLS.unpack_from(self._memory, at)[0] + calls)

    def _paid_until(self, place: int) -> float:
        until: float = _TIME.unpack_from(self._memory, place + _DIGEST_BYTES)[0]
        return until

    def _set_paid_until(self, place: int, until: float) -> None:
        _TIME.pack_into(self._memory, place + _DIGEST_BYTES, until)


class _SharedUsage:
    """The usage of a key that has a place."""

    def __init__(self, usages: SharedUsages, place: int) -> None:
        self._usages = usages
        self._place = place

    def begin(self, limit: int | None) -> bool:
        if limit is None:
            self._usages._add_calls(self._place, 1)  # only this process writes this number
            return True
        with self._usages._locked():
            if self._usages._calls(self._place) >= limit:
                return False
            self._usages._add_calls(self._place, 1)
            return True

    def end(self) -> None:
        self._usages._add_calls(self._place, -1)

    def pay(self, now: float, cost: float) -> float:
        with self._usages._locked():
            until = max(self._usages._paid_until(self._place), now) + cost
            self._usages._set_paid_until(self._place, until)
            return until

    def refund(self, cost: float) -> None:
        with self._usages._locked():
            self._usages._set_paid_until(self._place, self._usages._paid_until(self._place) - cost)
