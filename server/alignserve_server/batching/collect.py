"""Selects the entries of the next batch: a pure function."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import islice
from math import inf
from operator import attrgetter

from alignserve_server.batching.queue import Entry

_WINDOW = 8  # batches' worth of entries to look at, so that a longer queue costs no more


def collect(waiting: Iterable[Entry], limit: int, overhead: int = 0) -> list[Entry]:
    """Selects the first entry and the entries close to it in length that are worth adding.

    A batch is padded to its longest entry. So an entry is added only if the padding that it causes, in itself
    or in the entries already selected, is at most `overhead`: beyond that, a separate batch is cheaper. For
    the same reason the shorter or the longer part of the selection is left for a batch of its own if together
    they cause more padding than `overhead`.
    Entries of equal length, such as images, keep the order of their turns.

    Args:
        waiting: Entries in the order of their turns.
        limit: Maximum number of entries in the batch.
        overhead: Fixed cost of a batch, in units of `Entry.length`.

    Returns:
        At most `limit` entries, including the first; empty only if nothing waits.
    """
    turns = iter(waiting)
    window = list(islice(turns, limit))
    if len({entry.length for entry in window}) <= 1:
        return window
    first = window[0]
    window += islice(turns, (_WINDOW - 1) * limit)
    window.sort(key=attrgetter("length"))  # stable: equal lengths stay in order
    lengths = [entry.length for entry in window]
    low = high = window.index(first)
    while high - low + 1 < limit:
        shorter, longer = low - 1, high + 1
        padding_below = lengths[high] - lengths[shorter] if low else inf
        padding_above = (lengths[longer] - lengths[high]) * (longer - low) if longer < len(lengths) else inf
        if padding_above <= padding_below:
            if padding_above > overhead:
                break
            high = longer
        else:
            if padding_below > overhead:
                break
            low = shorter
    return _without_costly_part(window[low : high + 1], first.length, overhead)


def _without_costly_part(batch: list[Entry], first_length: int, overhead: int) -> list[Entry]:
    """Removes what is cheaper in a batch of its own, until nothing is; keeps entries of the first's length.

    The entries are sorted by length.
    """
    while True:
        longest, saved, split = batch[-1].length, overhead, 0
        end = bisect_right(batch, batch[0].length, key=_length)
        while end < len(batch):
            saving = end * (longest - batch[end - 1].length)  # if the first `end` run separately
            if saving > saved:
                saved, split = saving, end
            end = bisect_right(batch, batch[end].length, lo=end, key=_length)
        if not split:
            return batch
        batch = batch[split:] if batch[split].length <= first_length else batch[:split]


def _length(entry: Entry) -> int:
    return entry.length


def padding_ratio(batch: list[Entry]) -> float:
    """Returns the share of a batch that is padding, in [0, 1)."""
    lengths = [entry.length for entry in batch]
    return 1.0 - sum(lengths) / (max(lengths) * len(lengths))
