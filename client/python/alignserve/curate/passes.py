"""The passes of a curation over one source file: rows are measured, and later written with verdicts.

Files are independent of each other, so that several processes or machines can do different files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from alignserve.curate.decisions import FAILED, Flags
from alignserve.curate.measuring import MeasuredRow
from alignserve.curate.parts import DROPPED, KEPT, PartWriter, image_value, row_id
from alignserve.curate.plan import Plan
from alignserve.curate.report import Report
from alignserve.datasets.output import FileProgress, OutputDiffersError, OutputFolder
from alignserve.datasets.records import FailedRow, ShardRecord
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.shards import ShardEnd, read_shards
from alignserve.datasets.source import BrokenSourceError, SourceFile

OnRows: TypeAlias = Callable[[int], None]
"""Called with a number of rows that are done."""

_FAILURES = ("failure", "partial_failure")


def measure_file(plan: Plan, measured: OutputFolder, number: int, on_rows: OnRows) -> None:
    """Measures the rows of a source file that are not measured yet.

    Raises:
        AlignserveError: The server cannot be reached or fails.
        OSError: The folder cannot be written.
    """
    events = read_shards(plan.dataset.files[number], measured.progress(number), plan.options.rows_per_shard)
    while (shard := _ShardRows(events)).has_more:
        rows = [_measures_of(row) for row in plan.measures.measured(shard)]
        if (end := shard.end) is None:
            return
        drafts = {}
        if rows:
            draft = measured.draft()
            pq.write_table(pa.Table.from_pylist(rows, plan.measures.schema), draft)
            drafts[f"measures-{measured.stem(number, end.shard)}.parquet"] = draft
        record = ShardRecord(
            number, end.shard, end.start, end.end, end.is_last, end.rows, end.rows, broken=end.broken
        )
        measured.commit(record, drafts)
        on_rows(end.rows)


def measures_of(measured: OutputFolder, record: ShardRecord) -> list[dict[str, Any]]:
    """Returns the measures of a shard's rows; those of failed rows have a `failure_reason`."""
    rows: list[dict[str, Any]] = []
    for name in record.outputs:
        rows += pq.read_table(measured.folder / name).to_pylist()
    return rows


def write_file(
    plan: Plan,
    output: OutputFolder,
    measured: OutputFolder,
    records: Sequence[ShardRecord],
    flags: Flags,
    report: Report,
    on_rows: OnRows,
) -> None:
    """Writes the shards of a source file, except those that are written already with the same verdicts.

    Args:
        plan: The curation.
        output: For the shards.
        measured: The measures.
        records: Of all shards of the file's measures.
        flags: (rows of the file,): verdicts.
        report: Gets the rows.
        on_rows: Called after each shard.

    Raises:
        OutputDiffersError: The source has other rows than when they were measured.
        OSError: The folder cannot be written.
    """
    number = records[0].file
    written = _written(output, number)
    rows: Iterator[tuple[Row, int]] = iter(())
    position, first = -1, 0
    for record in records:
        if record.start != position:
            rows = plan.dataset.files[number].rows(record.start)
        verdicts = flags[first : first + record.rows_in]
        digest = blake2b(verdicts.tobytes(), digest_size=16).hexdigest()
        pairs = _Pairs(plan, number, report).of_shard(
            rows, measures_of(measured, record), verdicts.tolist(), first
        )
        if written.get(record.shard) == digest:
            deque(pairs, maxlen=0)  # only reports them
        else:
            _write_shard(plan, output, record, pairs, digest)
        position = record.end
        first += record.rows_in
        on_rows(record.rows_in)


class _Pairs:
    """Joins the rows of a source file with their measures and verdicts."""

    def __init__(self, plan: Plan, number: int, report: Report) -> None:
        self._plan = plan
        self._number = number
        self._report = report
        self._names = plan.measured_names

    def of_shard(
        self,
        rows: Iterator[tuple[Row, int]],
        measures: Sequence[Mapping[str, Any]],
        verdicts: Sequence[int],
        first: int,
    ) -> Iterator[Mapping[str, Any] | FailedRow]:
        """Yields what becomes of each row of a shard, whose first row has this position, and reports it."""
        done = 0
        try:
            for (row, _), known, bits in zip(islice(rows, len(measures)), measures, verdicts, strict=False):
                if row.key != known["key"]:
                    break
                yield (
                    self._failed(row, known)
                    if bits == FAILED
                    else self._judged(row, known, bits, first + done)
                )
                done += 1
        except BrokenSourceError as error:
            raise _differs(self._plan.dataset.files[self._number], first + done) from error
        if done != len(measures):
            raise _differs(self._plan.dataset.files[self._number], first + done)

    def _failed(self, row: Row, known: Mapping[str, Any]) -> FailedRow:
        name = next(name for name in _FAILURES if known[f"{name}_reason"] is not None)
        failure = RowFailure(known[f"{name}_reason"], known[f"{name}_message"])
        self._report.add(replace(row, image=None, failure=failure), ())
        return FailedRow.of(row.key, failure)

    def _judged(self, row: Row, known: Mapping[str, Any], bits: int, position: int) -> dict[str, Any]:
        reasons = self._plan.rules.reasons(bits)
        self._report.add(replace(row, text=known["text"]), reasons, known)
        pair = {"id": row_id(self._number, position), **row.columns, "key": row.key, "text": known["text"]}
        pair |= {name: known[name] for name in self._names}
        if self._plan.options.has_images:
            pair["image"] = image_value(row)
        return {**pair, "verdict": DROPPED if reasons else KEPT, "reasons": reasons}


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


def _measures_of(row: MeasuredRow) -> dict[str, Any]:
    found = {**row.columns, "key": row.row.key}
    for name in _FAILURES:
        failure: RowFailure | None = getattr(row, name)
        if failure is not None:
            found |= {f"{name}_reason": failure.reason, f"{name}_message": failure.message}
    return found


def _written(output: OutputFolder, number: int) -> dict[int, Any]:
    """Returns the digests of the verdicts in a file's shards that are written and intact."""
    progress = output.progress(number)
    if not progress.next_shard:
        return {}
    return {
        record.shard: record.details.get("verdicts")
        for record in output.records(number)
        if _covers(progress, record)
    }


def _covers(progress: FileProgress, record: ShardRecord) -> bool:
    is_in_gap = any(gap.start <= record.start < gap.end for gap in progress.gaps)
    return record.shard < progress.next_shard and not is_in_gap


def _write_shard(
    plan: Plan,
    output: OutputFolder,
    record: ShardRecord,
    pairs: Iterator[Mapping[str, Any] | FailedRow],
    digest: str,
) -> None:
    draft, failures, judged = output.draft(), [], 0
    with PartWriter(draft, plan.schema) as part:
        for pair in pairs:
            if isinstance(pair, FailedRow):
                failures.append(pair)
                continue
            judged += 1
            if pair["verdict"] == KEPT or not plan.options.kept_only:
                part.add(pair)
    drafts = {f"part-{output.stem(record.file, record.shard)}.parquet": draft} if part.rows else {}
    account = replace(
        record, rows_out=judged, failures=tuple(failures), outputs={}, details={"verdicts": digest}
    )
    output.commit(account, drafts, rows=part.rows)


def _differs(file: SourceFile, row: int) -> OutputDiffersError:
    return OutputDiffersError(
        f"source {file.name} has other rows than when it was measured, from row {row} on; "
        "begin again in another folder"
    )
