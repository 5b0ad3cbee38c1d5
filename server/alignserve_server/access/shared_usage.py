"""The usage of keys by all processes of a server that take calls, so that a quota is one for all of them."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from alignserve_server.access.usage import LONG_AGO, OwnUsage, Usage

_KEYS = 2048  # with a place; later ones are counted in each process
_DIGEST_BYTES = 16
_TIME = struct.Struct("<d")
_CALLS = struct.Struct("<i")
_LOCK = struct.Struct("hhqqi")  # a `struct flock`: type, whence, start, length, process
_RETRY_SECONDS = 0.0002
_PATIENCE_SECONDS = 0.02  # with a holder that neither continues nor is stopped; it needs microseconds


class SharedUsages:
    """The usage of keys in several processes of this machine, in memory that they map.

    A place holds the digest of a key's name, the time until which its rate has paid, and the number of its
    calls in progress in each process, so that those of a process that was killed can be dropped.
    """

    def __init__(self, descriptor: int, process: int, processes: int) -> None:
        """Maps the memory that `new_memory` has made."""
        self._columns = _columns(processes)
        self._own_column = self._columns[process]
        self._place_bytes = self._columns.stop
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _KEYS * self._place_bytes)
        self._known: dict[str, Usage] = {}

    def __getitem__(self, name: str) -> Usage:
        """Returns the usage of a key; see `Usages`."""
        usage = self._known.get(name)
        if usage is None:
            place = self._place(hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest())
            usage = self._known[name] = OwnUsage() if place is None else _SharedUsage(self, place)
        return usage

    def drop_calls(self) -> None:
        """Ends the calls of this process, which was killed while they were in progress."""
        for place in range(0, len(self._memory), self._place_bytes):
            _CALLS.pack_into(self._memory, place + self._own_column, 0)

    def _place(self, digest: bytes) -> int | None:
        """Returns where a key's place begins; takes a free one for a new key.

        None if there is none, or if another process is stopped while it takes one.
        """
        first = int.from_bytes(digest[:4], "little")
        with self._locked(0, 0) as is_locked:
            if not is_locked:
                return None
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
    def _locked(self, start: int, length: int) -> Iterator[bool]:
        """Excludes the other processes from some bytes, or from all with a length of 0.

        The kernel ends the lock of a process that is killed. One that is stopped keeps it, and the others go
        on without, since they must not stop too; what one of them charges may be lost then. Yields whether it
        is locked.
        """
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not self._lock(start, length):
            if self._is_holder_stopped(start, length) or time.monotonic() > give_up:
                yield False
                return
            time.sleep(_RETRY_SECONDS)
        try:
            yield True
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, length, start)

    def _lock(self, start: int, length: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except BlockingIOError:
            return False
        return True

    def _is_holder_stopped(self, start: int, length: int) -> bool:
        wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        found = fcntl.fcntl(self._descriptor, fcntl.F_GETLK, wanted)
        kind, _, _, _, holder = _LOCK.unpack(found)
        return kind != fcntl.F_UNLCK and _is_stopped(holder)

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
        with self._locked():
            if self._usages._calls(self._place) >= limit:
                return False
            self._usages._add_calls(self._place, 1)
            return True

    def end(self) -> None:
        self._usages._add_calls(self._place, -1)

    def pay(self, now: float, cost: float) -> float:
        with self._locked():
            until = max(self._usages._paid_until(self._place), now) + cost
            self._usages._set_paid_until(self._place, until)
            return until

    def refund(self, cost: float) -> None:
        with self._locked():
            self._usages._set_paid_until(self._place, self._usages._paid_until(self._place) - cost)

    def _locked(self) -> AbstractContextManager[bool]:
        return self._usages._locked(self._place, 1)


def new_memory(processes: int) -> int:
    """Makes the memory that a number of processes share; returns its descriptor, which they inherit."""
    descriptor = os.memfd_create("alignserve-usages")
    os.ftruncate(descriptor, _KEYS * _columns(processes).stop)
    return descriptor


def _columns(processes: int) -> range:
    """Returns where in a place the calls of each process are counted; the place ends with `stop`."""
    first = _DIGEST_BYTES + _TIME.size
    return range(first, first + processes * _CALLS.size, _CALLS.size)


def _is_stopped(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it has ended
        return False
    return status.rpartition(")")[2].split()[0] in "tT"
