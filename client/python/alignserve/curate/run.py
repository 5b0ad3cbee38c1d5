"""A curation, in three passes: measure every row, decide about all of them, write the result. The output has:

    work/measures/    the measures of every row, in shards; kept until the run is complete
    work/decisions/   the verdict of every row, made again by each run
    part-….parquet    the pairs with their columns, verdict and reasons
    report.html       what each rule removed; also report.json

The source is read twice, once for the measures and once for the result, so images are not copied in between.
Each pass holds one shard's measures in memory, and a few images. A run that was killed continues after its
last whole shard; decisions are made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from alignserve.curate.decisions import Decisions, Flags
from alignserve.curate.passes import measure_file, measures_of, write_file
from alignserve.curate.plan import Plan
from alignserve.curate.report import Report
from alignserve.datasets.ledger import Ledger, UnbalancedError
from alignserve.datasets.output import OutputFolder
from alignserve.datasets.records import ShardRecord

OnProgress: TypeAlias = Callable[[str, int], None]
"""Called with the name of a pass and a number of rows that it has finished."""

MEASURES, DECISIONS = Path("work/measures"), Path("work/decisions")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The account of a run: `ledger.rows_in` = kept + dropped + failed rows.

    Attributes:
        ledger: The account; `rows_out` are the rows with a verdict.
        counts: As the manifest has them: `Counts.as_json`, and the rules that were not applied.
    """

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


class Workers(Protocol):
    """Does the passes over source files; `Here` does them in this process, one after the other."""

    def measure(self, output: OutputFolder, measured: OutputFolder, files: Sequence[int]) -> None:
        """Measures the rows of these source files."""

    def write(
        self,
        output: OutputFolder,
        measured: OutputFolder,
        files: Iterable[tuple[list[ShardRecord], int]],
        flags: Flags,
    ) -> Iterator[Report]:
        """Writes source files, and yields reports that together have all rows.

        Args:
            output: For the result.
            measured: The measures.
            files: The records of each file's measures, and the number of its first row in the dataset.
            flags: (all rows,): verdicts, in the file `work/decisions/flags`.
        """


class Here:
    """Does the passes in this process."""

    def __init__(self, plan: Plan, on_progress: OnProgress = lambda *_: None) -> None:
        self._plan = plan
        self._on_progress = on_progress

    def measure(self, output: OutputFolder, measured: OutputFolder, files: Sequence[int]) -> None:  # noqa: ARG002
        """Measures the rows of these source files."""
        for number in files:
            measure_file(self._plan, measured, number, lambda rows: self._on_progress("measured", rows))

    def write(
        self,
        output: OutputFolder,
        measured: OutputFolder,
        files: Iterable[tuple[list[ShardRecord], int]],
        flags: Flags,
    ) -> Iterator[Report]:
        """Writes source files, and yields one report."""
        report = self._plan.new_report()
        for records, first in files:
            count = sum(record.rows_in for record in records)
            write_file(
                self._plan,
                output,
                measured,
                records,
                flags[first : first + count],
                report,
                lambda rows: self._on_progress("written", rows),
            )
        yield report


def curate(
    plan: Plan,
    folder: Path,
    *,
    resume: bool,
    sources: Sequence[str | Path] = (),
    workers: Workers | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Outcome:
    """Curates into a folder.

    Args:
        plan: The dataset and the rules.
        folder: Empty or new, or that of an earlier run to resume.
        resume: Go on with what an earlier run has left, if there is any.
        sources: Paths of the dataset, none of which may contain the folder.
        workers: Default: `Here`.
        on_progress: Hears of the decisions; the other passes are the workers'.

    Raises:
        OutputError: The folder cannot be used.
        ValueError: A cut needs a column that is not there.
        AlignserveError: The server cannot be reached or fails.
        OSError: The folder cannot be written.
    """
    not_applied = plan.measures.missing(plan.rules)  # refuses before anything is written
    with OutputFolder.create(folder, plan.manifest, resume=resume, sources=sources) as output:
        try:
            if not _is_complete(output):
                counts = _run(plan, output, workers or Here(plan, on_progress), on_progress)
                counts = {**counts, "not_applied": not_applied}
                output.manifest = {**output.manifest, "curation": counts}
        finally:
            ledger = output.finish(skipped=plan.dataset.skipped, problems=plan.dataset.problems)
        outcome = Outcome(ledger, output.manifest["curation"])
        _check(outcome)
        if ledger.is_complete:
            shutil.rmtree(folder / MEASURES.parent, ignore_errors=True)
        return outcome


def _run(plan: Plan, output: OutputFolder, workers: Workers, on_progress: OnProgress) -> dict[str, Any]:
    """Does the three passes, and returns the counts."""
    folder = output.folder / MEASURES
    folder.parent.mkdir(exist_ok=True)
    with OutputFolder.create(folder, plan.measures_manifest, resume=True) as measured:
        workers.measure(output, measured, range(len(plan.dataset.files)))
        decisions = _decide(plan, measured, output.folder / DECISIONS, on_progress)
        report = plan.new_report()
        for part in workers.write(output, measured, _files(measured), decisions.flags):
            report.merge(part)
    report.write_html(output.folder / "report.html")
    report.write_json(output.folder / "report.json")
    return decisions.counts.as_json(plan.rules)


def _decide(plan: Plan, measured: OutputFolder, folder: Path, on_progress: OnProgress) -> Decisions:
    shutil.rmtree(folder, ignore_errors=True)
    row_count = sum(record.rows_in for record in measured.records())
    decisions = Decisions(plan.rules, folder, row_count)
    for record in measured.records():
        decisions.add(measures_of(measured, record))
    decisions.decide(lambda rows: on_progress("compared", rows))
    return decisions


def _files(measured: OutputFolder) -> Iterator[tuple[list[ShardRecord], int]]:
    """Yields the records of each source file, and the number of its first row in the dataset."""
    first = 0
    for _, group in groupby(measured.records(), lambda record: record.file):
        records = list(group)
        yield records, first
        first += sum(record.rows_in for record in records)


def _is_complete(output: OutputFolder) -> bool:
    """Returns whether an earlier run has written everything, and nothing of it is missing or damaged."""
    if "curation" not in output.manifest:
        return False
    progress = map(output.progress, range(len(output.manifest["sources"])))
    return all(one.is_complete and not one.gaps for one in progress)


def _check(outcome: Outcome) -> None:
    ledger, counts = outcome.ledger, outcome.counts
    judged, failed = counts["kept"] + counts["dropped"], counts["failed"]
    if (judged, failed) != (ledger.rows_out, ledger.failed.total()):
        raise UnbalancedError(
            f"{ledger.rows_in} rows in, but {counts['kept']} kept, {counts['dropped']} dropped and {failed} "
            "failed; do not use this output, and report it as a bug"
        )
