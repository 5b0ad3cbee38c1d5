"""Kills a curation ten times, in each of its passes, and resumes it.

    python -m tests.client.curate.kills --rows 20000

The source has the metadata of pairs, and embeddings with near-duplicates. The command runs once without
interruption; then again into another folder, where it is killed (SIGKILL) at random moments of its first,
second or third pass and resumed. Prints the passes that were hit, and whether rows, verdicts, counts and
reports are the same.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_FILES = 4
_KILLS = 10
_DIMENSION = 64
_PASSES = ("measuring", "comparing", "writing")


def write(rows: int, source: Path, vectors: Path) -> None:
    """Writes Parquet files of metadata and of embeddings, many of which resemble an earlier one."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(rows // 3, _DIMENSION))
    for folder in (source, vectors):
        folder.mkdir()
    for file, numbers in enumerate(np.array_split(np.arange(rows), _FILES)):
        keys = [f"{number:07}" for number in numbers]
        table = {
            "key": keys,
            "text": [f"A photograph of the red bicycle number {number // 2}" for number in numbers],
            "width": [300 + number % 50 for number in numbers],
            "height": [300] * len(numbers),
            "url": [str(number // 2 * 2) if number % 7 == 0 else str(number) for number in numbers],
        }
        pq.write_table(pa.table(table), source / f"{file}.parquet")
        noise = rng.normal(scale=0.2, size=(len(numbers), _DIMENSION))
        near = (centres[rng.integers(0, len(centres), len(numbers))] + noise).astype(np.float32)
        pq.write_table(
            pa.table({"key": keys, "image_embedding": list(near)}), vectors / f"part-{file:05}.parquet"
        )


def result(folder: Path) -> tuple[Any, ...]:
    """Returns the rows with their verdicts, the counts and the report."""
    rows = [row for part in sorted(folder.glob("part-*")) for row in pq.read_table(part).to_pylist()]
    counts = json.loads((folder / "manifest.json").read_text())["curation"]
    return repr(rows), counts, (folder / "report.json").read_text(), len({row["key"] for row in rows})


def killed_in(command: list[str], stage: str, seconds: float) -> bool:
    """Starts the command, and kills it some time after it has begun a pass; returns whether it began it."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    with process:
        has_begun = any(f"{stage} rows" in line for line in process.stderr)
        time.sleep(seconds)
        process.kill()
    return has_begun


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.client.curate.kills", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(args.rows, folder / "source", folder / "vectors")
        command = [
            *(sys.executable, "-m", "alignserve.cli", "curate", str(folder / "source")),
            *("--key-column", "key", "--preset", "laion", "--top", "width=0.9", "--no-similarity"),
            *("--near-duplicates", str(folder / "vectors"), "--min-cosine", "0.9"),
            *("--rows-per-shard", str(max(args.rows // 40, 1)), "--resume", "--to"),
        ]
        subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
        hits: Counter[str] = Counter()
        for number in range(_KILLS):
            stage = _PASSES[min(number // 3, 2)]  # a pass that is complete does not begin again
            hits[stage] += killed_in([*command, str(folder / "killed")], stage, rng.random() / 2)
        subprocess.run([*command, str(folder / "killed")], check=True, capture_output=True)
        whole, killed = result(folder / "whole"), result(folder / "killed")
    print(f"killed while {', '.join(f'{stage} ({count})' for stage, count in hits.items())}")
    print(f"{killed[-1]:,} rows: {killed[1]}")
    print(f"the same rows, verdicts, counts and report: {killed == whole}")
    return 0 if killed == whole else 1


if __name__ == "__main__":
    sys.exit(main())
