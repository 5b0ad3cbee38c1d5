"""The time and memory of the search for near-duplicates, by the number of rows.

    OPENBLAS_NUM_THREADS=1 python -m tests.client.curate.near --rows 1000000 --min-cosine 0.95

The vectors come from the model of `tests.load.recall.cones`: 640 numbers, topics of very different sizes. One
row in ten, behind the first 10,000, is made a near-duplicate of an earlier one, at a cosine from 0.9 to 1.
Prints CPU time, the private memory of the process and the share of all pairs of which a bound was computed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from alignserve.curate.near_duplicates import NearDuplicates
from numpy.typing import NDArray

from tests.load.recall.cones import MINI, Vectors

_DIMENSION = 640
_PLANTED = 0.1
_LEAST_COSINE = 0.9


def vectors(rows: int, path: Path) -> NDArray[np.float32]:
    """Returns (rows, 640) vectors in a file."""
    made = np.memmap(path, np.float32, "w+", shape=(rows, _DIMENSION))
    rng = np.random.default_rng(99)
    start = 0
    for block in Vectors(MINI, rows, _DIMENSION).images():
        planted = np.flatnonzero(rng.random(len(block)) < _PLANTED)
        if start:
            block[planted] = _near(made[rng.integers(0, start, len(planted))], rng)
        made[start : start + len(block)] = block
        start += len(block)
    return made


def _near(originals: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    cosines = rng.uniform(_LEAST_COSINE, 1, len(originals))[:, None]
    other = rng.standard_normal(originals.shape).astype(np.float32)
    other -= (other * originals).sum(1, keepdims=True) * originals
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return np.asarray(cosines * originals + np.sqrt(1 - cosines * cosines) * other, np.float32)


def _private_mebibytes() -> int:
    """Returns the memory of the process that is not a file's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.client.curate.near", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--min-cosine", type=float, default=0.95)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = vectors(args.rows, folder / "vectors")
        search = NearDuplicates(rows, args.min_cosine, folder / "search")
        gone, most = 0, 0
        start, cpu = time.monotonic(), time.process_time()
        for number, goes in enumerate(search.blocks()):
            gone += int(goes.sum())
            most = max(most, _private_mebibytes())
            if number % 24 == 0:
                print(f"block {number}: {time.process_time() - cpu:,.0f} s CPU, {most} MiB", flush=True)
        found = search.statistics
        pairs = args.rows * (args.rows - 1) / 2
        print(
            f"{args.rows:,} rows, cosine {args.min_cosine:g}: {gone:,} go; "
            f"{time.process_time() - cpu:,.1f} s CPU, {time.monotonic() - start:,.0f} s; "
            f"{most} MiB; {found.cells} cells; bounds of {found.bounds / pairs:.1%} of the pairs, "
            f"{found.cosines:,} cosines"
        )


if __name__ == "__main__":
    main()
