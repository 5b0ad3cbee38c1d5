"""The memory and time of comparing vectors with each other.

    python -m tests.client.evaluate.memory --vectors 100000 --measure neighbours

makes random vectors, measures them as `alignserve evaluate` does, and prints the memory of the process above
that before the vectors.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from alignserve.evaluate.neighbours import neighbour_labels
from alignserve.evaluate.retrieval import ranks
from alignserve.evaluate.vectors import Vectors

_CLASSES = 1000
_TOP = 10


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=640)
    parser.add_argument("--measure", choices=("neighbours", "retrieval"), default="neighbours")
    args = parser.parse_args()

    before = _peak_mib()
    vectors = _random(args.vectors, args.dimension)
    size = args.vectors * args.dimension * 4 / (1 << 20)
    print(f"vectors: {size:.0f} MiB; peak {_peak_mib() - before:.0f} MiB", flush=True)
    start = time.monotonic()
    if args.measure == "neighbours":
        neighbour_labels(vectors, np.arange(args.vectors) % _CLASSES, _TOP)
    else:
        ranks(vectors, vectors, np.arange(args.vectors))
    seconds = time.monotonic() - start
    print(f"{args.measure}: {seconds:.0f} s; peak {_peak_mib() - before:.0f} MiB")


def _random(count: int, dimension: int) -> Vectors:
    chance = np.random.default_rng(0)
    vectors = Vectors(dimension)
    for _ in range(count):
        vector = chance.standard_normal(dimension, dtype=np.float32)
        vectors.append(vector / np.linalg.norm(vector))
    return vectors


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
