"""Python's cyclic garbage collector, set for a server: what lives long is not searched, and searches are rare."""

from __future__ import annotations

import gc

# Objects more than at the previous search that start the next one; Python's own 700 are those of ten calls in
# flight, so that sixty-four callers caused 55 searches per thousand calls, a tenth of the CPU time of small ones.
# Reference counting frees nearly everything; what waits for a search is a few MB at most.
_YOUNG_OBJECTS = 10_000


def settle_garbage_collector() -> None:
    """Call it once everything is loaded.

    Excludes what exists now from later searches: they would stall the event loop for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
