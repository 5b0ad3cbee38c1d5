"""How many texts a second batches of a size and an overhead give, on a model of a GPU.

A forward of align-base in float16 on an H100: 0.45 ms of launches, and 0.35 us a token, padding included.
"""

from __future__ import annotations

import random

import pytest
from alignserve_server.batching.collect import collect

from tests.unit.fakes import entry

_FORWARD_SECONDS, _TOKEN_SECONDS = 0.45e-3, 0.35e-6
_OVERHEAD = round(_FORWARD_SECONDS / _TOKEN_SECONDS)  # 1286 tokens, as it is measured at startup
_TEXTS = 3000

SHORT = list(range(5, 13))
MIXED = list(range(5, 53))
MOSTLY_SHORT = [6] * 9 + [64]


def _texts_per_second(lengths: list[int], waiting: int, limit: int, overhead: int) -> float:
    """Returns the rate while `waiting` texts of random lengths always wait."""
    rng = random.Random(0)
    queue = [entry(length=rng.choice(lengths)) for _ in range(waiting)]
    seconds, done = 0.0, 0
    while done < _TEXTS:
        batch = collect(queue, limit, overhead)
        longest = max(one.length for one in batch)
        seconds += _FORWARD_SECONDS + _TOKEN_SECONDS * longest * len(batch)
        done += len(batch)
        taken = set(map(id, batch))
        queue = [one for one in queue if id(one) not in taken]
        queue += [entry(length=rng.choice(lengths)) for _ in batch]
    return done / seconds


@pytest.mark.parametrize(
    ("lengths", "waiting", "gain"),
    [(SHORT, 1024, 3.0), (SHORT, 128, 1.9), (MIXED, 1024, 1.7), (MIXED, 128, 1.3)],
    ids=["short, 1024", "short, 128", "mixed, 1024", "mixed, 128"],
)
def test_limits_and_overhead_of_a_gpu_raise_its_rate(lengths: list[int], waiting: int, gain: float) -> None:
    """Compared with what suits a CPU: batches of 32, and a fixed cost of 16 tokens."""
    before = _texts_per_second(lengths, waiting, 32, 16)

    after = _texts_per_second(lengths, waiting, 256, _OVERHEAD)

    assert after > gain * before


@pytest.mark.parametrize("waiting", [128, 1024])
def test_a_large_overhead_does_not_pad_short_texts_to_long_ones(waiting: int) -> None:
    """It would allow for each of them, and so for hundreds."""
    apart = _texts_per_second(MOSTLY_SHORT, waiting, 256, 16)

    assert _texts_per_second(MOSTLY_SHORT, waiting, 256, _OVERHEAD) > 0.97 * apart
