"""The times at which requests are due in an open loop."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Literal, TypeAlias

Arrivals: TypeAlias = Literal["poisson", "constant"]


def arrival_seconds(rate: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Yields times since the start, endlessly.

    They are fixed in advance, so a slow server or sender delays none of them.

    Args:
        rate: Requests per second.
        arrivals: `poisson` for independent clients, `constant` for one every 1/rate seconds.
        seed: The same seed gives the same times.
    """
    if arrivals == "constant":
        return (position / rate for position in itertools.count())  # a running sum would drift
    rng = random.Random(seed)  # noqa: S311 — not a secret
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())
