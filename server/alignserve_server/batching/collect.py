"""Selects the entries of the next batch: a pure function."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from alignserve_server.batching.queue import Entry

_WINDOW = 8  # batches' worth of entries to look at, so that a longer queue costs no more


def collect(waiting: Iterable[Entry], limit: int, overhead: int = 0) -> list[Entry]:
    """Selects the first entry and the entries close to it in length that are worth adding.

    A batch is padded to its longest entry. So an entry is added only if the padding that it causes, in itself
    or in the entries already selected, is at most `overhead`: beyond that, a separate batch is cheaper.
    Entries of equal length, such as images, keep the order of their turns.

    Args:
        waiting: Entries in the order of their turns.
        limit: Maximum number of entries in the batch.
        overhead: Fixed cost of a batch, in units of `Entry.length`.

    Returns:
        At most `limit` entries, including the first; empty only if nothing waits.
    """
    window = list(islice(waiting, _WINDOW * limit))
    if not window:
        return []
    first = window[0]
    window.sort(key=lambda entry: entry.length)  # stable: equal lengths stay in order
    low = high = window.index(first)
    while high - low + 1 < limit:
        shorter, longer = low - 1, high + 1
        padding_below = _padding_of_shorter(window, shorter, high)
        padding_above = _padding_of_longer(window, longer, low, high)
        if min(padding_below, padding_above) > overhead:
            break
        if padding_above <= padding_below:
            high = longer
        else:
            low = shorter
    return window[low : high + 1]


def _padding_of_shorter(window: list[Entry], shorter: int, high: int) -> float:
    if shorter < 0:
        return float("inf")
    return window[high].length - window[shorter].length


def _padding_of_longer(window: list[Entry], longer: int, low: int, high: int) -> float:
    if longer >= len(window):
        return float("inf")
    return (window[longer].length - window[high].length) * (high - low + 1)


def padding_ratio(batch: list[Entry]) -> float:
    """Returns the share of a batch that is padding, in [0, 1)."""
    longest = max(entry.length for entry in batch)
    return 1.0 - sum(entry.length for entry in batch) / (longest * len(batch))
