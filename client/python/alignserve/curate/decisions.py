"""Decides about every row: all rules, over all shards, from the measures of the rows, in bounded memory.

The order makes each decision independent of shards and of runs:

1. rules about a single row;
2. texts that occur too often, and cuts by fraction, both over all rows that could be measured;
3. a row that no rule has dropped, and of which a measure is missing because of a failure, is a failed row;
4. duplicates, then near-duplicates, only among rows that are still in: the first in the order of the source
   stays.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve.curate.columns import is_missing
from alignserve.curate.embeddings import RowEmbeddings
from alignserve.curate.fractions import ScoredRows
from alignserve.curate.frequency import TextFrequency
from alignserve.curate.groups import RowGroups
from alignserve.curate.near_duplicates import NearDuplicates, SearchStatistics
from alignserve.curate.rules import (
    DuplicateRule,
    FractionRule,
    FrequencyRule,
    NearDuplicateRule,
    Rule,
    RuleSet,
)

Flags: TypeAlias = NDArray[np.uint64]
MeasuredRows: TypeAlias = Sequence[Mapping[str, Any]]

OnCompared: TypeAlias = Callable[[int], None]
"""Called with a number of rows that were compared with earlier ones."""

FAILED = 1 << 63
"""The bit of a failed row, which has no other."""

FLAGS = "flags"
"""The file of verdicts: 64 bits for each row."""

_FAILED_PARTLY = 1 << 62
_BLOCK_ROWS = 1 << 16


@dataclass(slots=True)
class Counts:
    """How many rows each rule has dropped.

    Attributes:
        kept: Rows that no rule drops.
        dropped: Rows that a rule drops.
        failed: Rows that could not be judged.
        first_reasons: Dropped rows by their first reason; their sum is `dropped`.
        all_reasons: Dropped rows by each of their reasons.
        unjudged: Rows for which a rule had no value to judge, by rule, failed rows left out.
        searches: How similar rows were found, by rule.
    """

    kept: int = 0
    dropped: int = 0
    failed: int = 0
    first_reasons: Counter[str] = field(default_factory=Counter)
    all_reasons: Counter[str] = field(default_factory=Counter)
    unjudged: Counter[str] = field(default_factory=Counter)
    searches: dict[str, SearchStatistics] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Returns the number of all rows."""
        return self.kept + self.dropped + self.failed

    def as_json(self, rules: RuleSet) -> dict[str, Any]:
        """Returns the counts for manifests, with every rule in its order."""
        return {
            "kept": self.kept,
            "dropped": self.dropped,
            "failed": self.failed,
            "first_reasons": {name: self.first_reasons[name] for name in rules.names},
            "all_reasons": {name: self.all_reasons[name] for name in rules.names},
            "unjudged": {name: count for name in rules.names if (count := self.unjudged[name])},
            **(
                {"searches": {name: asdict(one) for name, one in self.searches.items()}}
                if self.searches
                else {}
            ),
        }


class Decisions:
    """Takes the measures of all rows in their order, then decides.

    Args:
        rules: The rules.
        folder: An empty folder for files of up to about 100 bytes per row.
        row_count: Number of all rows.
    """

    def __init__(self, rules: RuleSet, folder: Path, row_count: int) -> None:
        self.counts = Counts()
        self._rules = rules
        self._next = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._near = [
            (bit, rule, _Embedded(rule, folder / f"{bit}-near")) for bit, rule in rules.of(NearDuplicateRule)
        ]
        self.flags = np.memmap(folder / FLAGS, np.uint64, "w+", shape=(max(row_count, 1),))
        self._frequencies = [
            (bit, rule, TextFrequency(folder / f"{bit}-texts", row_count))
            for bit, rule in rules.of(FrequencyRule)
        ]
        self._fractions = [
            (bit, rule, ScoredRows(folder / f"{bit}-scores")) for bit, rule in rules.of(FractionRule)
        ]
        self._duplicates = [
            (bit, rule, RowGroups(folder / f"{bit}-groups", row_count))
            for bit, rule in rules.of(DuplicateRule)
        ]

    def add(self, rows: MeasuredRows) -> None:
        """Adds the next rows; a row that failed has a `failure_reason`."""
        first = self._next
        self._next += len(rows)
        self.flags[first : self._next] = np.array([self._bits(row) for row in rows], np.uint64)
        whole = [(first + i, row) for i, row in enumerate(rows) if row["failure_reason"] is None]
        for _, _, texts in self._frequencies:
            texts.add(*_columns((row["text"], number) for number, row in whole if row["text"] is not None))
        for bit, rule, scores in self._fractions:
            scored = [(number, row) for number, row in whole if not is_missing(row.get(rule.column))]
            values = ((row[rule.column], row["key"], number) for number, row in scored)
            scores.add(*_columns(values, 3))
            self._drop_unscored(bit, rule, whole, scored)
        for _, rule, groups in self._duplicates:
            contents = [(_content(row, rule), number) for number, row in whole]
            known = [content for content in contents if content[0] is not None]
            self.counts.unjudged[rule.name] += len(contents) - len(known)
            groups.add(*_columns(known))
        for _, rule, embedded in self._near:
            self.counts.unjudged[rule.name] += embedded.add(enumerate(rows, first))

    def decide(self, on_compared: OnCompared = lambda _: None) -> Counts:
        """Applies the rules about all rows together, and counts.

        Raises:
            ValueError: There are embeddings of other rows.
        """
        for bit, rule, texts in self._frequencies:
            self._set(bit, texts.too_frequent(rule.max_count))
        for bit, rule, scores in self._fractions:
            self._set(bit, scores.dropped(scores.cutoff(rule.fraction)))
        self._fail_undecided()
        for bit, _, groups in self._duplicates:
            self._set(bit, groups.repeated(self.flags))
        for bit, rule, embedded in self._near:
            self._set(bit, embedded.similar(self.flags, on_compared))
            self.counts.searches[rule.name] = embedded.statistics
        self._count()
        self.flags.flush()
        return self.counts

    def _bits(self, row: Mapping[str, Any]) -> int:
        if row["failure_reason"] is not None:
            return FAILED
        bits = 0 if row["partial_failure_reason"] is None else _FAILED_PARTLY
        for bit, rule in enumerate(self._rules.rules):
            if not isinstance(rule, Rule):
                continue
            stays = rule.judge(row)
            if stays is None:
                self.counts.unjudged[rule.name] += 1
                stays = not (rule.drops_unjudged and row["partial_failure_reason"] is None)
            bits |= (not stays) << bit
        return bits

    def _drop_unscored(
        self, bit: int, rule: FractionRule, whole: Sequence[Any], scored: Sequence[Any]
    ) -> None:
        self.counts.unjudged[rule.name] += len(whole) - len(scored)
        rows = {number for number, row in whole if row["partial_failure_reason"] is None}
        rows -= {number for number, _ in scored}
        self._set(bit, [np.array(sorted(rows), np.uint64)])

    def _set(self, bit: int, blocks: Iterable[NDArray[np.uint64]]) -> None:
        for rows in blocks:
            self.flags[rows] |= np.uint64(1 << bit)

    def _fail_undecided(self) -> None:
        for block in self._blocks():
            block[block == np.uint64(_FAILED_PARTLY)] = FAILED
            block[block != np.uint64(FAILED)] &= np.uint64(_FAILED_PARTLY - 1)

    def _count(self) -> None:
        counts, names = self.counts, self._rules.names
        for block in self._blocks():
            values, repeats = np.unique(block, return_counts=True)
            for bits, times in zip(map(int, values), map(int, repeats), strict=True):
                if bits == FAILED:
                    counts.failed += times
                elif reasons := [name for bit, name in enumerate(names) if bits >> bit & 1]:
                    counts.dropped += times
                    counts.first_reasons[reasons[0]] += times
                    counts.all_reasons.update(dict.fromkeys(reasons, times))
                else:
                    counts.kept += times

    def _blocks(self) -> Iterator[Flags]:
        for start in range(0, self._next, _BLOCK_ROWS):
            yield self.flags[start : min(start + _BLOCK_ROWS, self._next)]


class _Embedded:
    """Rows with embeddings, which are compared with each other."""

    def __init__(self, rule: NearDuplicateRule, scratch: Path) -> None:
        self.statistics = SearchStatistics()
        self._rule = rule
        self._scratch = scratch
        self._embeddings = RowEmbeddings(rule.embeddings, scratch)

    def add(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> int:
        """Takes the next rows with their numbers, and returns how many of them have no embedding."""
        return self._embeddings.add(rows)

    def similar(self, flags: Flags, on_compared: OnCompared) -> Iterator[NDArray[np.uint64]]:
        """Yields the numbers of rows that resemble an earlier one, in blocks.

        Raises:
            ValueError: There are embeddings of other rows.
        """
        rows, vectors = self._embeddings.finish()
        search = NearDuplicates(vectors, self._rule.min_cosine, self._scratch / "search")
        is_in = np.empty(len(rows), bool)
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            is_in[part] = flags[rows[part]] == 0
        start = 0
        for goes in search.blocks(is_in):
            yield rows[start : start + len(goes)][goes]
            start += len(goes)
            on_compared(len(goes))
        self.statistics = search.statistics
        shutil.rmtree(self._scratch)  # the vectors are many times as large as all else


def _content(row: Mapping[str, Any], rule: DuplicateRule) -> tuple[str, ...] | None:
    """Returns the values that duplicates share, or `None` if one is missing.

    Flat and tiny pictures have no perceptual hash; only equal files are duplicates of them.
    """
    values = []
    for name in rule.columns:
        value = row.get(name)
        if name == "image_phash" and value is None and row.get("image_digest") is not None:
            value = f"file {row['image_digest']}"
        if is_missing(value):
            return None
        values.append(str(value))
    return tuple(values)


def _columns(rows: Iterable[tuple[Any, ...]], width: int = 2) -> tuple[tuple[Any, ...], ...]:
    """Returns rows of values as columns, also if there are none."""
    return tuple(zip(*rows, strict=True)) or ((),) * width
