"""The memory of a curation, by the number of rows.

    python -m tests.client.curate.memory --rows 1000000

curates generated rows of metadata as COYO-700M was, with a cut by fraction, and prints the memory of the
process after each tenth of each pass. Pictures are left out: they are decoded in other processes.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import psutil
import pyarrow as pa
from alignserve.curate.measuring import Measures
from alignserve.curate.pictures import measure
from alignserve.curate.plan import Plan
from alignserve.curate.presets import coyo
from alignserve.curate.rules import FractionRule
from alignserve.curate.run import Here, curate
from alignserve.datasets.row import Row
from alignserve.datasets.source import Dataset

_ROWS_PER_FILE = 20_000
_SCHEMA = pa.schema(
    [("width", pa.int64()), ("height", pa.int64()), ("image_phash", pa.string()), ("score", pa.float64())]
)


@dataclass(frozen=True)
class _Metadata:
    """A source file whose rows are made when they are read: every ninth text and picture occurs before."""

    name: str
    first: int

    def digest(self) -> str:
        return self.name

    def rows(self, start: int = 0) -> Iterator[tuple[Row, int]]:
        for position in range(start, _ROWS_PER_FILE):
            number = self.first + position
            content = number // 2 if number % 9 == 0 else number
            columns = {
                "width": 300 + number % 500,
                "height": 300,
                "image_phash": f"{content:016x}",
                "score": number * 7919 % 1_000_003 / 1e6,
            }
            yield Row(f"{number:09}", None, f"a photograph of number {content}", columns), position + 1


class _Words:
    """Every text is English and has a noun."""

    def detect(self, text: str) -> tuple[str, float]:
        return "en", 1.0

    def has_noun(self, text: str) -> bool:
        return bool(text)

    def word_count(self, text: str) -> int:
        return text.count(" ") + 1


class _Printer:
    """Prints the memory after each tenth of a pass."""

    def __init__(self, rows: int) -> None:
        self._step = max(rows // 10, 1)
        self._done: Counter[str] = Counter()
        self._start = time.monotonic()

    def __call__(self, stage: str, rows: int) -> None:
        before = self._done[stage] // self._step
        self._done[stage] += rows
        if self._done[stage] // self._step > before:
            memory = psutil.Process().memory_info().rss >> 20
            seconds = time.monotonic() - self._start
            print(f"{stage:9} {self._done[stage]:9,} rows  {memory:5} MiB  {seconds:7.1f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.client.curate.memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    files = [
        _Metadata(f"{first:09}", first) for first in range(0, max(args.rows, _ROWS_PER_FILE), _ROWS_PER_FILE)
    ]
    dataset = Dataset(files, _SCHEMA)
    rules = coyo().plus([FractionRule("score", Fraction("0.3"))])
    plan = Plan(dataset, rules, Measures.for_rules(rules, _SCHEMA, measure, _Words()))
    with tempfile.TemporaryDirectory() as folder:
        outcome = curate(plan, Path(folder), resume=False, workers=Here(plan, _Printer(args.rows)))
    print(outcome.summary())
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
