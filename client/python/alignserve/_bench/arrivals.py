"""When requests are due in an open loop."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Literal, TypeAlias

Arrivals: TypeAlias = Literal["poisson", "constant"]


def arrival_seconds(rate: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Yields times since the beginning, without end.

    They depend on nothing that happens meanwhile, so a slow server or sender shifts none of them.

    Args:
        rate: Requests a second.
        arrivals: `poisson` for independent callers, `constant` for one every 1/rate seconds.
        seed: The same seed gives the same times.
    """
    if arrivals == "constant":
        return (position / rate for position in itertools.count())  # a running sum would drift
    chance = random.Random(seed)  # noqa: S311 — no secret
    return itertools.accumulate(chance.expovariate(rate) for _ in itertools.count())
