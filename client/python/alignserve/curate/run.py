"""A curation, in three passes: measure every row, decide about all of them, write the result.

    FOLDER/work/measures/    the measures of every row, in shards; kept until the run is complete
    FOLDER/work/decisions/   the verdict of every row, made again by each run
    FOLDER/part-….parquet    the pairs with their columns, verdict and reasons
    FOLDER/report.html       what each rule removed; also report.json

The source is read twice, once for the measures and once for the result, so images are not copied in between.
Each pass holds one shard's measures in memory, and a few images. A run that was killed continues after its
last whole shard; decisions are made again.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from alignserve.curate.columns import PICTURE_FIELDS, TEXT_FIELDS, similarity_column, tokens_column
from alignserve.curate.decisions import FAILED, Decisions, Flags
from alignserve.curate.measuring import Measures
from alignserve.curate.parts import DROPPED, KEPT, PartWriter, image_value, output_schema, row_id
from alignserve.curate.report import Report, Thumbnail
from alignserve.curate.rules import RuleSet
from alignserve.datasets.ledger import Ledger, UnbalancedError
from alignserve.datasets.output import FileProgress, OutputDiffersError, OutputFolder
from alignserve.datasets.records import FailedRow, ShardRecord
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.shards import ShardEnd, read_shards
from alignserve.datasets.source import BrokenSourceError, Dataset, SourceFile

OnProgress: TypeAlias = Callable[[str, int], None]
"""Called with the name of a pass and a number of rows that it has finished."""

_WORK, _MEASURES, _DECISIONS = "work", "measures", "decisions"
_FAILURES = ("failure", "partial_failure")


@dataclass(frozen=True, slots=True)
class Options:
    """How a curation is written.

    Attributes:
        kept_only: Write only the rows that are kept; otherwise dropped rows too.
        has_images: Write a column with the images, or with their paths if the source has files.
        rows_per_shard: Rows in one part; their measures are in memory at once.
    """

    kept_only: bool = False
    has_images: bool = True
    rows_per_shard: int = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """The account of a run: `ledger.rows_in` = `kept` + `dropped` + failed rows."""

    ledger: Ledger
    counts: Mapping[str, Any]

    def summary(self) -> str:
        """Returns the account in one line, for people."""
        ledger, failed = self.ledger, self.ledger.failed
        reasons = ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
        line = f"{ledger.rows_in} rows in = {self.counts['kept']} kept + {self.counts['dropped']} dropped"
        line += f" + {failed.total()} failed" + (f" ({reasons})" if reasons else "")
        for number, what in (
            (ledger.skipped.total(), "files skipped"),
            (len(ledger.broken), "source files break off"),
            (len(ledger.problems), "problems"),
        ):
            line += f"; {number} {what}" if number else ""
        return line


@dataclass(slots=True)
class Curation:
    """A curation of a dataset.

    Args:
        dataset: The pairs.
        rules: What goes.
        measures: How rows are measured.
        options: How the result is written.
        thumbnail: Makes small pictures for the report.
        on_progress: Called after each shard.
    """

    dataset: Dataset
    rules: RuleSet
    measures: Measures
    options: Options = field(default_factory=Options)
    thumbnail: Thumbnail | None = None
    on_progress: OnProgress = lambda *_: None

    def run(self, folder: Path, *, resume: bool, sources: Sequence[str | Path] = ()) -> Outcome:
        """Curates into a folder.

        Args:
            folder: Empty or new, or that of an earlier run to resume.
            resume: Go on with what an earlier run has left, if there is any.
            sources: Paths of the dataset, none of which may contain the folder.

        Raises:
            OutputError: The folder cannot be used.
            ValueError: A cut needs a column that is not there.
            AlignserveError: The server cannot be reached or fails.
            OSError: The folder cannot be written.
        """
        self.measures.missing(
            self.rules
        )  # a rule that cannot be applied is refused before anything is written
        with OutputFolder.create(folder, self._manifest(), resume=resume, sources=sources) as output:
            try:
                progress = [output.progress(number) for number in range(len(self.dataset.files))]
                if not _is_complete(output, progress):
                    self._do(output, progress)
            finally:
                ledger = output.finish(skipped=self.dataset.skipped, problems=self.dataset.problems)
            counts = output.manifest["curation"]
            _check(ledger, counts)
            if ledger.is_complete:
                shutil.rmtree(folder / _WORK, ignore_errors=True)
            return Outcome(ledger, counts)

    def _do(self, output: OutputFolder, progress: Sequence[FileProgress]) -> None:
        work = output.folder / _WORK
        work.mkdir(exist_ok=True)
        with OutputFolder.create(work / _MEASURES, self._measures_manifest(), resume=True) as measured:
            for number, file in enumerate(self.dataset.files):
                self._measure(measured, number, file)
            decisions = self._decide(measured, work / _DECISIONS)
            report = self._report()
            written = {
                (record.file, record.shard): record.details.get("verdicts")
                for record in output.records()
                if _covers(progress[record.file], record)
            }
            first_row = 0
            for _, records in groupby(measured.records(), lambda record: record.file):
                flags = decisions.flags[first_row:]
                first_row += self._write(output, measured, records, flags, written, report)
        report.write_html(output.folder / "report.html")
        report.write_json(output.folder / "report.json")
        counts = {
            **decisions.counts.as_json(self.rules),
            "not_applied": self.measures.missing(self.rules),
        }
        output.manifest = {**output.manifest, "curation": counts}

    def _measure(self, measured: OutputFolder, number: int, file: SourceFile) -> None:
        progress = measured.progress(number)
        events = read_shards(file, progress, self.options.rows_per_shard)
        while (shard := _ShardRows(events)).has_more:
            draft = measured.draft()
            rows = [
                {**row.columns, "key": row.row.key, **_failures(row)} for row in self.measures.measured(shard)
            ]
            if (end := shard.end) is None:
                return
            drafts = {}
            if rows:
                pq.write_table(pa.Table.from_pylist(rows, self.measures.schema), draft)
                drafts[f"measures-{measured.stem(number, end.shard)}.parquet"] = draft
            record = ShardRecord(
                number, end.shard, end.start, end.end, end.is_last, end.rows, end.rows, broken=end.broken
            )
            measured.commit(record, drafts)
            self.on_progress("measured", end.rows)

    def _decide(self, measured: OutputFolder, folder: Path) -> Decisions:
        shutil.rmtree(folder, ignore_errors=True)
        row_count = sum(record.rows_in for record in measured.records())
        decisions = Decisions(self.rules, folder, row_count)
        for record in measured.records():
            decisions.add(_rows_of(measured, record))
        decisions.decide()
        return decisions

    def _write(
        self,
        output: OutputFolder,
        measured: OutputFolder,
        records: Iterable[ShardRecord],
        flags: Flags,
        written: Mapping[tuple[int, int], str | None],
        report: Report,
    ) -> int:
        """Writes the shards of a source file, except those that are written already, and reports all rows.

        Args:
            output: For the shards.
            measured: The measures.
            records: Of the file's measures.
            flags: (rows from the file's first on,): verdicts.
            written: Digests of the verdicts in shards that are written, by file and shard.
            report: Gets the rows.

        Returns:
            The number of the file's rows.
        """
        rows: Iterator[tuple[Row, int]] = iter(())
        position, first_row = -1, 0
        for record in records:
            file = self.dataset.files[record.file]
            if record.start != position:
                rows = file.rows(record.start)
            verdicts = flags[first_row : first_row + record.rows_in]
            digest = blake2b(verdicts.tobytes(), digest_size=16).hexdigest()
            known = _rows_of(measured, record)
            first_id = row_id(record.file, first_row)
            pairs = self._pairs(file, rows, known, list(map(int, verdicts)), first_id, report)
            if written.get((record.file, record.shard)) == digest:
                deque(pairs, maxlen=0)  # reports them
            else:
                self._write_shard(output, record, pairs, digest)
            position = record.end
            first_row += record.rows_in
            self.on_progress("written", record.rows_in)
        return first_row

    def _pairs(
        self,
        file: SourceFile,
        rows: Iterator[tuple[Row, int]],
        known: Sequence[Mapping[str, Any]],
        verdicts: Sequence[int],
        first_id: int,
        report: Report,
    ) -> Iterator[Mapping[str, Any] | FailedRow]:
        """Yields what becomes of each row of a shard, and adds it to the report.

        Raises:
            OutputDiffersError: The source has other rows than when they were measured.
        """
        count = 0
        try:
            for (row, _), measures, bits in zip(islice(rows, len(known)), known, verdicts, strict=False):
                if row.key != measures["key"]:
                    break
                count += 1
                if bits == FAILED:
                    failure = _failure_of(measures)
                    report.add(replace(row, image=None, failure=failure), ())
                    yield FailedRow.of(row.key, failure)
                    continue
                reasons = self.rules.reasons(bits)
                report.add(replace(row, text=measures["text"]), reasons, measures)
                yield self._pair(row, measures, reasons, first_id + count - 1)
        except BrokenSourceError as error:
            raise _differs(file, count) from error
        if count != len(known):
            raise _differs(file, count)

    def _pair(
        self, row: Row, measures: Mapping[str, Any], reasons: Sequence[str], number: int
    ) -> dict[str, Any]:
        pair = {"id": number, **row.columns, "key": row.key, "text": measures["text"]}
        pair |= {name: measures[name] for name in self._measured_names}
        if self.options.has_images:
            pair["image"] = image_value(row)
        return {**pair, "verdict": DROPPED if reasons else KEPT, "reasons": reasons}

    def _write_shard(
        self,
        output: OutputFolder,
        record: ShardRecord,
        pairs: Iterator[Mapping[str, Any] | FailedRow],
        digest: str,
    ) -> None:
        draft, failures, judged = output.draft(), [], 0
        with PartWriter(draft, self._schema) as part:
            for pair in pairs:
                if isinstance(pair, FailedRow):
                    failures.append(pair)
                    continue
                judged += 1
                if pair["verdict"] == KEPT or not self.options.kept_only:
                    part.add(pair)
        drafts = {f"part-{output.stem(record.file, record.shard)}.parquet": draft} if part.rows else {}
        output.commit(
            replace(
                record,
                rows_out=judged,
                failures=tuple(failures),
                outputs={},
                details={"verdicts": digest},
            ),
            drafts,
        )

    def _report(self) -> Report:
        numbers = [field.name for field in self._schema if _is_number(field)]
        return Report(
            rules=self.rules.boundaries(),
            measures=[name for name in numbers if name != "id"],
            thumbnail=self.thumbnail,
        )

    @property
    def _measured_names(self) -> list[str]:
        return [field.name for field in (*PICTURE_FIELDS, *TEXT_FIELDS, *self.measures.score_fields)]

    @property
    def _schema(self) -> pa.Schema:
        comparing = self.measures.comparing
        model = (
            {"alignserve.model": comparing.model_id, "alignserve.fingerprint": comparing.fingerprint}
            if comparing is not None
            else {}
        )
        return output_schema(
            self.dataset.schema, self.measures.score_fields, model, has_images=self.options.has_images
        )

    def _manifest(self) -> dict[str, Any]:
        return {
            **self._measures_manifest(),
            "job": "curate",
            "rules": self.rules.boundaries(),
            "output": {"kept_only": self.options.kept_only, "has_images": self.options.has_images},
            "columns": self._schema.names,
        }

    def _measures_manifest(self) -> dict[str, Any]:
        measures, comparing = self.measures, self.measures.comparing
        return {
            "job": "curate-measures",
            "model": None
            if comparing is None
            else {
                "id": comparing.model_id,
                "fingerprint": comparing.fingerprint,
                "similarity": similarity_column(comparing.model_id),
                "tokens": tokens_column(comparing.model_id),
            },
            "sources": [{"name": file.name, "digest": file.digest()} for file in self.dataset.files],
            "options": {
                "rows_per_shard": self.options.rows_per_shard,
                "collapses_whitespace": measures.collapses_whitespace,
                "source_columns": [*measures.source_columns, *measures.source_texts],
                "scorers": {scorer.column: scorer.target for scorer in measures.scorers},
            },
        }


class _ShardRows:
    """The rows of the next shard, up to its end."""

    def __init__(self, events: Iterator[Row | ShardEnd]) -> None:
        self.end: ShardEnd | None = None
        self._events = events
        self._first = next(events, None)
        self.has_more = self._first is not None

    def __iter__(self) -> Iterator[Row]:
        event = self._first
        while isinstance(event, Row):
            yield event
            event = next(self._events, None)
        self.end = event


def _failures(row: Any) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _FAILURES:
        failure: RowFailure | None = getattr(row, name)
        found[f"{name}_reason"] = failure.reason if failure else None
        found[f"{name}_message"] = failure.message if failure else None
    return found


def _failure_of(measures: Mapping[str, Any]) -> RowFailure:
    name = next(name for name in _FAILURES if measures[f"{name}_reason"] is not None)
    return RowFailure(measures[f"{name}_reason"], measures[f"{name}_message"])


def _rows_of(measured: OutputFolder, record: ShardRecord) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in record.outputs:
        rows += pq.read_table(measured.folder / name).to_pylist()
    return rows


def _covers(progress: FileProgress, record: ShardRecord) -> bool:
    """Returns whether a shard is written and intact."""
    is_in_gap = any(gap.start <= record.start < gap.end for gap in progress.gaps)
    return record.shard < progress.next_shard and not is_in_gap


def _is_complete(output: OutputFolder, progress: Sequence[FileProgress]) -> bool:
    """Returns whether an earlier run has written everything, and nothing of it is missing or damaged."""
    return "curation" in output.manifest and all(one.is_complete and not one.gaps for one in progress)


def _check(ledger: Ledger, counts: Mapping[str, Any]) -> None:
    judged, failed = counts["kept"] + counts["dropped"], counts["failed"]
    if ledger.is_complete and (judged, failed) != (ledger.rows_out, ledger.failed.total()):
        raise UnbalancedError(
            f"{ledger.rows_in} rows in, but {counts['kept']} kept, {counts['dropped']} dropped and {failed} "
            "failed; do not use this output, and report it as a bug"
        )


def _differs(file: SourceFile, count: int) -> OutputDiffersError:
    return OutputDiffersError(
        f"source {file.name} has other rows than when it was measured, from row {count} of a shard on; "
        "begin again in another folder"
    )


def _is_number(field: pa.Field) -> bool:
    return bool(pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
