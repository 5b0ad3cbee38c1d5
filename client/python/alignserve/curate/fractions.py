"""The exact cutoff of a fraction: which value the n-th best of any number of rows has, in bounded memory.

Values are read from disk several times: each time, the values that are left are counted in 65,536 ranges,
until the values of one range fit into memory. Two readings suffice unless more than a million rows share a
range. Rows with the value of the cutoff are ties: those with the lowest hash of their key stay, which is the
same choice in every run and for any order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ranks: TypeAlias = NDArray[np.uint64]
Blocks: TypeAlias = Callable[[], Iterator[Ranks]]

_SCORED = np.dtype([("value", "<f8"), ("tie", "<u8"), ("row", "<u8")])
_BLOCK_ROWS = 1 << 16
_ROOM_ROWS = 1 << 20
_DIGIT_BITS = 16


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Keeps values above `value`, and values equal to it whose tie hash is at most `tie`."""

    value: float
    tie: int

    def keeps(self, values: NDArray[np.float64], ties: Ranks) -> NDArray[np.bool_]:
        """Returns which rows stay: (rows,) each."""
        stays: NDArray[np.bool_] = (values > self.value) | (
            (values == self.value) & (ties <= np.uint64(self.tie))
        )
        return stays


class ScoredRows:
    """The values of a column, on disk: written once, row by row, then read any number of times.

    Rows are numbered by their caller; a row without a value is left out.
    """

    def __init__(self, path: Path, room_rows: int = _ROOM_ROWS) -> None:
        self._path = path
        self._room_rows = room_rows
        self._file: BinaryIO | None = path.open("wb")
        self.count = 0

    def add(self, values: Iterable[float], keys: Iterable[str], rows: Iterable[int]) -> None:
        """Adds rows with their keys and numbers."""
        assert self._file is not None  # noqa: S101 — all rows are added before any are read
        block = np.array(
            [(value + 0.0, tie_hash(key), row) for value, key, row in zip(values, keys, rows, strict=True)],
            _SCORED,
        )  # + 0.0 turns -0.0 into 0.0, which it is equal to
        self._file.write(block.tobytes())
        self.count += len(block)

    def cutoff(self, fraction: Fraction) -> Cutoff:
        """Returns the cutoff that keeps this fraction of the rows, rounded down."""
        wanted = int(self.count * fraction)
        if not wanted:
            return Cutoff(np.inf, 0)
        rank, at_rank = nth_highest(
            lambda: (value_ranks(block["value"]) for block in self._blocks()), wanted, self._room_rows
        )
        value = _value_of(rank)
        ties, _ = nth_highest(
            lambda: (~block["tie"][block["value"] == value] for block in self._blocks()),
            at_rank,
            self._room_rows,
        )
        return Cutoff(value, ~ties & (1 << 64) - 1)

    def dropped(self, cutoff: Cutoff) -> Iterator[Ranks]:
        """Yields the numbers of the rows that the cutoff does not keep, in blocks."""
        for block in self._blocks():
            yield block["row"][~cutoff.keeps(block["value"], block["tie"])]

    def _blocks(self) -> Iterator[NDArray[np.void]]:
        if self._file is not None:
            self._file.close()
            self._file = None
        with self._path.open("rb") as file:
            while data := file.read(_BLOCK_ROWS * _SCORED.itemsize):
                yield np.frombuffer(data, _SCORED)


def tie_hash(key: str) -> int:
    """Returns the 64-bit hash of a key by which ties are decided."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def value_ranks(values: NDArray[np.float64]) -> Ranks:
    """Returns integers in the order of the values, which are not NaN: (rows,)."""
    bits = np.ascontiguousarray(values).view(np.uint64)
    is_negative = bits >> np.uint64(63) == 1
    return np.where(is_negative, ~bits, bits | np.uint64(1 << 63))


def nth_highest(blocks: Blocks, n: int, room_rows: int = _ROOM_ROWS) -> tuple[int, int]:
    """Returns the n-th highest of some integers, and how many integers equal to it are among the n highest.

    Args:
        blocks: Returns the integers in blocks, the same each time.
        n: From 1 to their number.
        room_rows: How many of them fit into memory.
    """
    low, width = 0, 64
    while width:
        width -= _DIGIT_BITS
        counts = _digit_counts(blocks(), low, width)
        from_top = np.cumsum(counts[::-1])
        position = int(np.searchsorted(from_top, n))
        digit = len(counts) - 1 - position
        n -= int(from_top[position]) - int(counts[digit])
        low |= digit << width
        if counts[digit] <= room_rows:
            return _nth_in_memory(blocks(), low, width, n)
    return low, n


def _digit_counts(blocks: Iterator[Ranks], low: int, width: int) -> NDArray[np.int64]:
    """Counts the integers of the range that begins with `low` by their next digit."""
    counts = np.zeros(1 << _DIGIT_BITS, np.int64)
    for block in blocks:
        found = _in_range(block, low, width + _DIGIT_BITS)
        digits = (found >> np.uint64(width)) & np.uint64((1 << _DIGIT_BITS) - 1)
        counts += np.bincount(digits.astype(np.int64), minlength=len(counts))
    return counts


def _nth_in_memory(blocks: Iterator[Ranks], low: int, width: int, n: int) -> tuple[int, int]:
    found = np.sort(np.concatenate([_in_range(block, low, width) for block in blocks]))[::-1]
    value = found[n - 1]
    return int(value), n - int(np.count_nonzero(found > value))


def _in_range(block: Ranks, low: int, width: int) -> Ranks:
    """Returns the integers that equal `low` in all but their last `width` bits."""
    if width == 64:
        return block
    found: Ranks = block[block >> np.uint64(width) == np.uint64(low >> width)]
    return found


def _value_of(rank: int) -> float:
    """Returns the value of a rank."""
    bits = rank ^ (1 << 63) if rank >> 63 else ~rank & (1 << 64) - 1
    return float(np.array([bits], np.uint64).view(np.float64)[0])
