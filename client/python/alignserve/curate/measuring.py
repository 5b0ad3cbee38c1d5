"""Measures the pairs of a shard, one stage behind the other: picture, text, scores, similarity.

Each stage reads ahead by a bounded number of rows. A row that cannot be measured keeps its place and has a
reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from alignserve.curate.columns import (
    PICTURE_FIELDS,
    TEXT_FIELDS,
    TextMeasures,
    Whitespace,
    picture_columns,
    similarity_column,
    source_numbers,
    text_columns,
    tokens_column,
    value_of,
    with_whitespace,
)
from alignserve.curate.pictures import Picture
from alignserve.curate.rules import AnyRule, DuplicateRule, FractionRule, Rule, RuleSet
from alignserve.curate.scorers import Scorer
from alignserve.curate.similarity import Comparing, Similarity
from alignserve.datasets.row import Row, RowFailure

MeasurePictures: TypeAlias = Callable[[Iterable[bytes | Path]], Iterator[Picture | RowFailure]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_SCORER_BATCH = 32


@dataclass(slots=True)
class MeasuredRow:
    """A row and its measures.

    Attributes:
        row: As the source has it, without its image if the row cannot be judged.
        columns: Measures by name.
        failure: Why it cannot be judged at all.
        partial_failure: Why a score or the similarity is missing. A rule that needs neither can still drop
            the
            row; otherwise it is a failed row.
    """

    row: Row
    columns: dict[str, Any] = field(default_factory=dict)
    failure: RowFailure | None = None
    partial_failure: RowFailure | None = None


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures rows.

    Attributes:
        pictures: Measures images, in order.
        texts: Measures texts.
        whitespace: What becomes of white space in a text first; see `with_whitespace`.
        source_columns: Columns of the source that rules need, as numbers.
        source_texts: Columns of the source that rules need, as texts.
        scorers: Plug-ins.
        comparing: Compares pairs on a server, or `None` to do without similarities.
    """

    pictures: MeasurePictures
    texts: TextMeasures
    whitespace: Whitespace = "kept"
    source_columns: tuple[str, ...] = ()
    source_texts: tuple[str, ...] = ()
    scorers: Sequence[Scorer] = ()
    comparing: Comparing | None = None

    @classmethod
    def for_rules(
        cls,
        rules: RuleSet,
        source: pa.Schema,
        pictures: MeasurePictures,
        texts: TextMeasures,
        *,
        scorers: Sequence[Scorer] = (),
        comparing: Comparing | None = None,
    ) -> Measures:
        """Returns measures with the columns of a source that some rules need.

        Raises:
            ValueError: A scorer would fill a column that is measured, or that another one fills.
        """
        measures = cls(
            pictures,
            texts,
            whitespace=rules.whitespace,
            scorers=scorers,
            comparing=comparing,
        )
        _check_scorers(measures)
        known = {name.lower() if name.isupper() else name for name in source.names}
        wanted = (rules.columns() - set(measures.schema.names)) & known
        compared = {name for _, rule in rules.of(DuplicateRule) for name in rule.columns}
        return replace(
            measures,
            source_columns=tuple(sorted(wanted - compared)),
            source_texts=tuple(sorted(wanted & compared)),
        )

    def missing(self, rules: RuleSet) -> dict[str, list[str]]:
        """Returns the columns that neither the measures nor the source have, for each rule that needs them.

        Raises:
            ValueError: A cut needs one, and would drop every row; or it needs one that has no numbers.
        """
        found = {}
        for rule in rules.rules:
            self._check_numbers(rule)
            needs = sorted(RuleSet((rule,)).columns() - set(self.schema.names))
            if needs and (isinstance(rule, FractionRule) or getattr(rule, "drops_unjudged", False)):
                raise ValueError(
                    f"rule {rule.name} needs a column {needs[0]}, which the source does not have"
                )
            if needs:
                found[rule.name] = needs
        return found

    def _check_numbers(self, rule: AnyRule) -> None:
        if not (isinstance(rule, FractionRule) or (isinstance(rule, Rule) and rule.is_cut)):
            return
        for name in RuleSet((rule,)).columns() & set(self.schema.names):
            kind = self.schema.field(name).type
            if pa.types.is_string(kind):
                raise ValueError(f"rule {rule.name} compares numbers, but the column {name} has texts")

    @property
    def schema(self) -> pa.Schema:
        """Returns the columns of a shard of measures: one row for each row of the source, failed or not."""
        return pa.schema(
            [
                pa.field("key", pa.string()),
                pa.field("text", pa.string()),
                pa.field("has_picture", pa.bool_()),
                *PICTURE_FIELDS,
                *TEXT_FIELDS,
                *(pa.field(name, pa.float64()) for name in self.source_columns),
                *(pa.field(name, pa.string()) for name in self.source_texts),
                *self.score_fields,
                *(
                    pa.field(name, pa.string())
                    for failure in ("failure", "partial_failure")
                    for name in (f"{failure}_reason", f"{failure}_message")
                ),
            ]
        )

    @property
    def score_fields(self) -> list[pa.Field]:
        """Returns the columns of plug-ins and of the server."""
        fields = [pa.field(scorer.column, pa.float64()) for scorer in self.scorers]
        if self.comparing is not None:
            fields.append(pa.field(similarity_column(self.comparing.model_id), pa.float64()))
            fields.append(pa.field(tokens_column(self.comparing.model_id), pa.int64()))
        return fields

    def measured(self, rows: Iterable[Row]) -> Iterator[MeasuredRow]:
        """Yields each row with its measures, in order.

        Raises:
            AlignserveError: The server cannot be reached or fails.
        """
        found = self._with_pictures(rows)
        found = map(self._with_text, found)
        if self.scorers:
            found = self._with_scores(found)
        if self.comparing is not None:
            found = self._with_similarity(found, self.comparing)
        return found

    def _with_pictures(self, rows: Iterable[Row]) -> Iterator[MeasuredRow]:
        waiting = (MeasuredRow(row, failure=row.failure) for row in rows)
        for item, result in passing(waiting, _image_of, self.pictures):
            if isinstance(result, RowFailure):
                item.failure, result = result, None
            if item.failure is not None:
                item.row = replace(item.row, image=None)
            item.columns = picture_columns(item.row, result)
            item.columns["has_picture"] = item.columns["width"] is not None
            yield item

    def _with_text(self, item: MeasuredRow) -> MeasuredRow:
        text = item.row.text
        if text is not None:
            text = with_whitespace(text, self.whitespace)
        if item.failure is None:
            item.columns |= text_columns(text, self.texts)
        item.columns["text"] = text
        item.columns |= source_numbers(item.row.columns, self.source_columns)
        item.columns |= {name: _text_of(value_of(item.row.columns, name)) for name in self.source_texts}
        return item

    def _with_scores(self, items: Iterator[MeasuredRow]) -> Iterator[MeasuredRow]:
        while batch := list(islice(items, _SCORER_BATCH)):
            pairs = [(item, image) for item in batch if (image := _content_of(item)) is not None]
            for scorer in self.scorers if pairs else ():
                scores = scorer.scores(
                    [image for _, image in pairs], [item.columns["text"] for item, _ in pairs]
                )
                for (item, _), score in zip(pairs, scores, strict=True):
                    if isinstance(score, RowFailure):
                        item.partial_failure = item.partial_failure or score
                    else:
                        item.columns[scorer.column] = score
            yield from batch

    def _with_similarity(self, items: Iterator[MeasuredRow], comparing: Comparing) -> Iterator[MeasuredRow]:
        for item, result in passing(items, _pair_of, comparing):
            if isinstance(result, RowFailure):
                item.partial_failure = item.partial_failure or result
            elif isinstance(result, Similarity):
                item.columns[similarity_column(comparing.model_id)] = result.value
                item.columns[tokens_column(comparing.model_id)] = result.token_count
            yield item


def _check_scorers(measures: Measures) -> None:
    taken = ["id", "image", "verdict", "reasons", *replace(measures, scorers=()).schema.names]
    for scorer in measures.scorers:
        if scorer.column in taken:
            raise ValueError(f"scorer {scorer.target} cannot fill {scorer.column}, which is filled already")
        taken.append(scorer.column)


def passing(
    items: Iterable[_Item],
    input_of: Callable[[_Item], Any],
    process: Callable[[Iterable[Any]], Iterator[_Result]],  # Any: what the process takes
) -> Iterator[tuple[_Item, _Result | None]]:
    """Yields each item, in order, with the result of its input; items without an input pass with `None`.

    Args:
        items: Any number of them.
        input_of: Returns the input of an item, or `None` if it has none.
        process: Yields a result for each input, in order; it may read ahead, in another thread as well.
    """
    waiting: deque[tuple[_Item, bool]] = deque()

    def inputs() -> Iterator[Any]:
        for item in items:
            value = input_of(item)
            waiting.append((item, value is not None))
            if value is not None:
                yield value

    for result in process(inputs()):
        while not waiting[0][1]:
            yield waiting.popleft()[0], None
        yield waiting.popleft()[0], result
    while waiting:
        yield waiting.popleft()[0], None


def _image_of(item: MeasuredRow) -> bytes | Path | None:
    return item.row.image if item.failure is None else None


def _pair_of(item: MeasuredRow) -> tuple[bytes | Path, str] | None:
    image, text = _image_of(item), item.columns["text"]
    return (image, text) if image is not None and text else None


def _content_of(item: MeasuredRow) -> bytes | None:
    """Returns the bytes of an image; a file that has gone since it was measured fails the row."""
    image = _image_of(item)
    if not isinstance(image, Path):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        item.failure = RowFailure("IMAGE_FILE_UNREADABLE", f"image file cannot be read: {error.strerror}")
        return None


def _text_of(value: object) -> str | None:
    return None if value is None else str(value)
