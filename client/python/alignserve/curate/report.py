"""The report of a curation: what each rule removed, how each measure is distributed, and examples."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heappush, heappushpop
from pathlib import Path
from typing import Any, TypeAlias

from alignserve.curate.histogram import Histogram
from alignserve.curate.report_page import page
from alignserve.datasets.row import Row

Thumbnail: TypeAlias = Callable[[bytes | Path], bytes | None]
"""Makes a small JPEG of an image, or `None` if it cannot; `PictureProcesses.thumbnail` does."""

KEPT = "kept"
"""Under which examples of kept rows are listed; reasons are in capitals."""

_FORMAT, _VERSION = "alignserve-curation-report", 1
_MAX_TEXT = 300  # characters of an example's text
_MAX_KEY = 200


@dataclass(frozen=True, slots=True)
class Removed:
    """How many rows a rule removed.

    Attributes:
        first: Rows of which it is the first reason; summed over all rules, these are the dropped rows.
        all: Rows of which it is a reason.
        only: Rows of which it is the only reason: without the rule, this many more rows would be kept.
    """

    first: int
    all: int
    only: int


@dataclass(frozen=True, slots=True)
class Example:
    """A row that shows what a rule removes, or what is kept.

    Attributes:
        key: Of the row, cut if it is long.
        text: Of the row, cut if it is long.
        reasons: All of them.
        values: Its measures.
        thumbnail: A JPEG in base64, or `None`.
    """

    key: str
    text: str | None
    reasons: tuple[str, ...]
    values: Mapping[str, float]
    thumbnail: str | None


class Report:
    """Counts, histograms and examples of rows, in memory that does not grow with their number.

    It is the same for any order of the rows, also if they are added in parts to several reports that are merged.
    """

    def __init__(
        self,
        *,
        rules: Mapping[str, str] | None = None,
        measures: Iterable[str] = (),
        thumbnail: Thumbnail | None = None,
        examples: int = 12,
    ) -> None:
        """Creates a report without rows.

        Args:
            rules: Which rows go by each rule, by the rule's reason, in the order of the rules.
            measures: Columns of rows, or other values, whose distribution is shown.
            thumbnail: Called for rows with an image that become examples, about `examples` times the logarithm
                of the number of rows.
            examples: For each reason. Each row is as likely as any other to be one, and it is the same ones every
                time: those whose keys have the lowest hashes.
        """
        self._rules = dict(rules or {})
        self._thumbnail = thumbnail
        self._max_examples = examples
        self.rows_in = 0
        self.kept = 0
        self.failed: Counter[str] = Counter()
        self._first: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._only: Counter[str] = Counter()
        self.histograms = {name: Histogram() for name in measures}
        self._examples: dict[str, list[tuple[int, str, Example]]] = {}  # heaps: the highest hash is first

    def add(self, row: Row, reasons: Sequence[str], values: Mapping[str, Any] | None = None) -> None:
        """Counts a row.

        Args:
            row: Its failure, if it has one, counts instead of reasons.
            reasons: Why it is dropped, in the order of the rules; empty if it is kept.
            values: Its measures; those that are not here are taken from its columns.
        """
        self.rows_in += 1
        if row.failure is not None:
            self.failed[row.failure.reason] += 1
            return
        self.kept += not reasons
        self._first.update(reasons[:1])
        self._all.update(reasons)
        self._only.update(reasons if len(reasons) == 1 else ())
        given = {**row.columns, **(values or {})}
        numbers = {name: _number(given.get(name)) for name in self.histograms}
        for name, number in numbers.items():
            self.histograms[name].add(number, is_kept=not reasons)
        self._keep_examples(row, reasons, {name: found for name, found in numbers.items() if found is not None})

    @property
    def dropped(self) -> int:
        """Returns the number of dropped rows."""
        return self._first.total()

    def removed(self) -> dict[str, Removed]:
        """Returns what each rule removed, in the order of the rules."""
        others = sorted(self._all.keys() - self._rules.keys())
        return {
            name: Removed(self._first[name], self._all[name], self._only[name])
            for name in (*self._rules, *others)
        }

    def examples(self) -> dict[str, list[Example]]:
        """Returns examples by reason, in the order of the rules; those of kept rows are last, under `KEPT`."""
        names = [name for name in (*self.removed(), KEPT) if name in self._examples]
        return {name: [example for *_, example in sorted(self._examples[name], reverse=True)] for name in names}

    def merge(self, other: Report) -> None:
        """Adds the rows of another report with the same rules, measures and number of examples.

        Raises:
            ValueError: It has others.
        """
        if other._settings() != self._settings():
            raise ValueError("reports with other rules, measures or numbers of examples cannot be merged")
        self.rows_in += other.rows_in
        self.kept += other.kept
        for mine, others in zip(self._counters(), other._counters(), strict=True):
            mine.update(others)
        for name, histogram in other.histograms.items():
            self.histograms[name].merge(histogram)
        for name, found in other._examples.items():
            for entry in found:
                self._push(name, entry)

    def state(self) -> dict[str, Any]:
        """Returns all of it as JSON has it, for `from_state`: a run that resumes goes on with it."""
        return {
            "rows_in": self.rows_in,
            "kept": self.kept,
            "counts": [dict(sorted(counter.items())) for counter in self._counters()],
            "histograms": {name: histogram.state() for name, histogram in self.histograms.items()},
            "examples": {
                name: [[rank, key, asdict(example)] for rank, key, example in sorted(found)]
                for name, found in sorted(self._examples.items())
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Adds the rows of a report that had this state and was made with the same arguments."""
        other = Report(rules=self._rules, measures=self.histograms, examples=self._max_examples)
        other.rows_in, other.kept = state["rows_in"], state["kept"]
        for counter, counts in zip(other._counters(), state["counts"], strict=True):
            counter.update(counts)
        other.histograms = {name: Histogram.from_state(one) for name, one in state["histograms"].items()}
        for name, found in state["examples"].items():
            for rank, key, example in found:
                other._push(name, (rank, key, Example(**{**example, "reasons": tuple(example["reasons"])})))
        self.merge(other)

    def data(self, *, thumbnails: bool = False) -> dict[str, Any]:
        """Returns the report as JSON has it, by default without thumbnails."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "rows_in": self.rows_in,
            "kept": self.kept,
            "dropped": self.dropped,
            "failed": dict(sorted(self.failed.items())),
            "rules": [
                {"reason": name, "boundary": self._rules.get(name), **asdict(removed)}
                for name, removed in self.removed().items()
            ],
            "measures": {
                name: {
                    "kept": histogram.kept,
                    "dropped": histogram.dropped,
                    "missing": histogram.missing,
                    "percentiles": {str(p): histogram.percentile(p) for p in (1, 25, 50, 75, 99)},
                    "kept_percentiles": {
                        str(p): histogram.percentile(p, of_kept=True) for p in (1, 25, 50, 75, 99)
                    },
                    "bars": [bar._asdict() for bar in histogram.bars()],
                }
                for name, histogram in self.histograms.items()
            },
            "examples": {
                name: [asdict(one if thumbnails else replace(one, thumbnail=None)) for one in found]
                for name, found in self.examples().items()
            },
        }

    def write_json(self, path: Path) -> None:
        """Writes the report as JSON, all of it or nothing."""
        _write(path, json.dumps(self.data(), indent=1) + "\n")

    def write_html(self, path: Path, title: str = "Curation report") -> None:
        """Writes the report as one page that needs no other file, no network and no script, all of it or nothing."""
        _write(path, page(title, self.data(thumbnails=True)))

    def _keep_examples(self, row: Row, reasons: Sequence[str], values: Mapping[str, float]) -> None:
        example: Example | None = None
        for name in dict.fromkeys(reasons or (KEPT,)):
            rank = -_rank(name, row.key)  # heaps have the lowest first
            found = self._examples.get(name, [])
            if not self._max_examples or (len(found) == self._max_examples and (rank, row.key) < found[0][:2]):
                continue
            example = example or self._example(row, reasons, values)
            self._push(name, (rank, row.key, example))

    def _push(self, name: str, entry: tuple[int, str, Example]) -> None:
        found = self._examples.setdefault(name, [])
        if len(found) < self._max_examples:
            heappush(found, entry)
        else:
            heappushpop(found, entry)

    def _example(self, row: Row, reasons: Sequence[str], values: Mapping[str, float]) -> Example:
        jpeg = self._thumbnail(row.image) if self._thumbnail and row.image is not None else None
        return Example(
            key=_cut(row.key, _MAX_KEY),
            text=None if row.text is None else _cut(row.text, _MAX_TEXT),
            reasons=tuple(reasons),
            values=values,
            thumbnail=base64.b64encode(jpeg).decode() if jpeg else None,
        )

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.failed, self._first, self._all, self._only

    def _settings(self) -> tuple[Any, ...]:
        return list(self._rules.items()), list(self.histograms), self._max_examples


def _rank(name: str, key: str) -> int:
    """Returns a number that is as good as random, and depends on the row only."""
    data = f"{name}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
