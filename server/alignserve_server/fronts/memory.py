"""Shared memory between one front and the device: places that the front fills and the device reads.

The front makes the memory, without a name in a file system, and hands its descriptor to the device. It alone
decides what lies where; messages name places by their offset. A place is reused only once the device has
answered the request or said that it no longer reads the place. Only pages that were ever written take up
memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from alignserve_server.model.encoder import TOKEN_BYTES, ModelInfo, TokenIds

_PAGE_BYTES = mmap.PAGESIZE
_KEPT_BYTES = 64 << 20  # of free places of one size that keep their pages
TEXT_HEAD_BYTES = 8  # of each text in a place: two numbers of four bytes
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(size: int) -> tuple[int, mmap.mmap]:
    """Creates memory of a final size; returns its descriptor, to be closed once it is sent, and its map."""
    descriptor = os.memfd_create("alignserve-front", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def attach(descriptor: int, size: int) -> mmap.mmap:
    """Maps memory that a front has created.

    Raises:
        ValueError: It has another size or could shrink, after which reading it would end this process.
        OSError: It is not such memory.
    """
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError("the memory of a front is not sealed")
    if os.fstat(descriptor).st_size != size:
        raise ValueError(f"the memory of a front does not have {size} bytes")
    return mmap.mmap(descriptor, size)


def whole_pages(size: int) -> int:
    """Returns a size in bytes, rounded up to whole pages."""
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES


class Places:
    """Places of one size in a part of the memory. Thread-safe, without locks: each step is one operation."""

    def __init__(self, memory: mmap.mmap, start: int, stop: int, place_bytes: int) -> None:
        """All places are free; `place_bytes` is a number of whole pages."""
        self.place_bytes = place_bytes
        self.count = (stop - start) // place_bytes
        self._memory = memory
        self._kept = max(1, _KEPT_BYTES // place_bytes)
        self._unused = iter(range(start, start + self.count * place_bytes, place_bytes))
        self._free: deque[int] = deque()  # the latest one last: its pages are most likely cached

    def take(self) -> int | None:
        """Returns a free place, or None if there is none."""
        try:
            return self._free.pop()
        except IndexError:
            return next(self._unused, None)

    def give_back(self, place: int) -> None:
        """Frees a place; returns its pages to the system if many others are free."""
        if len(self._free) < self._kept:
            self._free.append(place)
        else:
            self._memory.madvise(mmap.MADV_REMOVE, place, self.place_bytes)
            self._free.appendleft(place)


class FairPlaces:
    """Places for which requests wait in order of arrival. Use only on the event loop's thread.

    A request takes all its places at once, so that no two requests each hold what the other waits for.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._waiting: deque[tuple[int, asyncio.Future[list[int]]]] = deque()

    @property
    def place_bytes(self) -> int:
        return self._places.place_bytes

    @property
    def count(self) -> int:
        return self._places.count

    def take_now(self, count: int) -> list[int] | None:
        """Returns that many places, or None if there are not enough or others wait for them."""
        return None if self._waiting else self._take(count)

    async def take(self, count: int) -> list[int]:
        """Waits for that many places, which must not be more than there are in total."""
        places = self.take_now(count)
        if places is not None:
            return places
        turn: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        waiter = count, turn
        self._waiting.append(waiter)
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back(turn.result())  # granted while being cancelled
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
                self._wake()  # a smaller request behind it may fit
            raise

    def give_back(self, places: Sequence[int]) -> None:
        """Frees places and lets the next requests have them."""
        for place in places:
            self._places.give_back(place)
        if self._waiting:
            self._wake()

    def fail_waiting(self, error: Callable[[], Exception]) -> None:
        """Fails all requests that wait, each with its own error."""
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(error())
        self._waiting.clear()

    def _take(self, count: int) -> list[int] | None:
        taken: list[int] = []
        for _ in range(count):
            place = self._places.take()
            if place is None:
                for each in taken:
                    self._places.give_back(each)
                return None
            taken.append(place)
        return taken

    def _wake(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if turn.cancelled():  # its task is about to remove it
                return
            places = self._take(count)
            if places is None:
                return
            self._waiting.popleft()
            turn.set_result(places)


def rows_at(memory: mmap.mmap, place: int, count: int, dimension: int) -> NDArray[np.float32]:
    """Returns the embeddings in a place: (count, dimension)."""
    return np.ndarray((count, dimension), np.float32, memory, place)


def pixels_at(memory: mmap.mmap, place: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Returns the pixels of an image in a place."""
    return np.ndarray(shape, np.uint8, memory, place)


def write_texts(memory: mmap.mmap, place: int, texts: Sequence[TokenIds], sizes: Sequence[int]) -> None:
    """Writes texts into a place: the bytes of tokens of each, the size of each, then all tokens."""
    data = b"".join((array("I", map(len, texts)).tobytes(), array("I", sizes).tobytes(), *texts))
    memory[place : place + len(data)] = data


def read_texts(memory: mmap.mmap, place: int, count: int, max_bytes: int) -> tuple[list[TokenIds], list[int]]:
    """Returns copies of the texts in a place, at least one, and their sizes.

    Raises:
        ValueError: They are not whole, or the tokens of one take more than `max_bytes`.
    """
    start = place + TEXT_HEAD_BYTES * count
    head = array("I", memory[place:start]).tolist()
    lengths, sizes = head[:count], head[count:]
    if len(head) != 2 * count or max(lengths) > max_bytes:
        raise ValueError(f"no {count} texts in the memory at {place}")
    ends = list(accumulate(lengths))
    tokens = memory[start : start + ends[-1]]
    if len(tokens) < ends[-1]:
        raise ValueError(f"no {count} texts in the memory at {place}")
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)], sizes


def max_text_bytes(info: ModelInfo) -> int:
    """Returns the most that the tokens of a text take."""
    return TOKEN_BYTES * info.max_text_tokens
