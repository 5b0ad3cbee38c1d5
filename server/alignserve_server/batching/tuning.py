"""How large batches should be: measured, since it depends on model, runtime and machine."""

from __future__ import annotations

import time
from collections.abc import Callable

from alignserve_server.model.encoder import OutOfDeviceMemory

_REPEATS = 3  # of which the fastest counts: others were disturbed
_WORTH = 0.95  # of the best throughput, which the smallest batch that reaches it is preferred for
_LONGEST_SECONDS = 0.5  # of a batch: longer ones keep the other modality waiting
_HOPELESS = 8  # times the best size: larger ones take time and memory to try, and three have not paid


def best_batch_size(
    run: Callable[[int], object], limit: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Returns the smallest batch with nearly the best throughput.

    Sizes double from 1 up to `limit`, until three in a row do not pay, one does not fit the device, or the
    next should take over half a second.

    Args:
        run: Runs a batch of a size. Called some times for each size, and once before to warm it.
        limit: Largest size.
        clock: Seconds.

    Raises:
        OutOfDeviceMemory: Not even one entry fits.
    """
    rates: dict[int, float] = {}
    size = 1
    while True:
        try:
            run(size)
        except OutOfDeviceMemory:
            if not rates:
                raise
            return _smallest_near_best(rates)
        seconds = min(_seconds(run, size, clock) for _ in range(_REPEATS))
        rates[size] = size / max(seconds, 1e-9)
        best = _smallest_near_best(rates)
        following = min(2 * size, limit)
        is_long = seconds * following / size > _LONGEST_SECONDS
        if following == size or is_long or size >= _HOPELESS * best:
            return best
        size = following


def _smallest_near_best(rates: dict[int, float]) -> int:
    most = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= _WORTH * most)


def _seconds(run: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    start = clock()
    run(size)
    return clock() - start
