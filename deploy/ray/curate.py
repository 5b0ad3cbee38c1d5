"""`alignserve curate` on the machines of a Ray cluster.

    python -m deploy.ray.curate SOURCE... --to FOLDER --workers 4

It is the same command, with the same output, account and `--resume`. The source files are shared out to
actors of Ray, which measure and later write them; the decisions in between take one process.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ray
from alignserve import cli
from alignserve._cli import curation_job
from alignserve.curate.decisions import FLAGS, Flags
from alignserve.curate.passes import measure_file, write_file
from alignserve.curate.plan import Plan
from alignserve.curate.report import Report
from alignserve.curate.run import DECISIONS, MEASURES, OnProgress
from alignserve.datasets.output import OutputFolder
from alignserve.datasets.records import ShardRecord
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from deploy.ray import job_command

_MAX_RETRIES = 5  # of a source file whose worker dies
_PATHS = ("near_duplicates", "blocked_words", "exclude_phashes")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; an invalid command line raises `SystemExit(2)`."""
    ours, args = job_command.parsed(
        "curate", "deploy.ray.curate", "Curate pairs on the machines of a Ray cluster.", argv, paths=_PATHS
    )
    return cli.run_command(functools.partial(_run, ours=ours), args)


def _run(args: argparse.Namespace, ours: argparse.Namespace) -> int:
    count = job_command.join_cluster(ours)
    return curation_job.run(args, functools.partial(OnRay, args, count))


class OnRay:
    """Does the passes on actors of Ray, each one source file after the other.

    An actor that dies is started again, with its machine or without; its file continues after the last shard
    that is on the disk.
    """

    def __init__(self, args: argparse.Namespace, count: int, plan: Plan, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        # The parser's own function is not needed, and cannot be sent.
        plain = argparse.Namespace(**{**vars(args), "usage_error": None})
        self._job = job = ray.put((plain, plan.dataset, plan.model))  # kept for actors that start again
        actors = [
            _Worker.options(  # type: ignore[attr-defined]  # Ray's decorator adds it
                num_cpus=1, scheduling_strategy="SPREAD"
            ).remote(job)
            for _ in range(min(count, len(plan.dataset.files)))
        ]
        self._pool = ActorPool(actors)

    def measure(self, output: OutputFolder, measured: OutputFolder, files: Sequence[int]) -> None:  # noqa: ARG002
        """Measures the rows of these source files."""
        for rows in self._map(lambda actor, number: actor.measure.remote(output.folder, number), files):
            self._on_progress("measured", rows)

    def write(
        self,
        output: OutputFolder,
        measured: OutputFolder,  # noqa: ARG002
        files: Iterable[tuple[list[ShardRecord], int]],
        flags: Flags,  # noqa: ARG002
    ) -> Iterator[Report]:
        """Writes source files, and yields a report of each."""

        def start(actor: Any, file: tuple[list[ShardRecord], int]) -> Any:
            return actor.write.remote(output.folder, *file)

        for report in self._map(start, files):
            self._on_progress("written", report.rows_in)
            yield report

    def _map(self, start: Any, values: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from self._pool.map_unordered(start, values)
        except RayTaskError as error:
            raise error.cause from error


@ray.remote(max_restarts=-1, max_task_retries=_MAX_RETRIES)
class _Worker:
    """Measures and writes source files, one at a time."""

    def __init__(self, job: tuple[argparse.Namespace, Any, Any]) -> None:
        args, dataset, model = job
        self._stack = ExitStack()  # ends with the process
        self._plan = curation_job.plan_of(args, dataset, self._stack)
        if self._plan.model != model:
            raise ValueError(f"this worker's server has the model {self._plan.model}, not {model}")

    def measure(self, folder: Path, number: int) -> int:
        """Measures what is left of a source file, and returns how many rows that were."""
        rows: list[int] = []
        measure_file(self._plan, OutputFolder.join(folder / MEASURES), number, rows.append)
        return sum(rows)

    def write(self, folder: Path, records: list[ShardRecord], first: int) -> Report:
        """Writes what is left of a source file, and returns a report of all of its rows."""
        count = sum(record.rows_in for record in records)
        flags = np.zeros(0, np.uint64)
        if count:
            path = folder / DECISIONS / FLAGS
            flags = np.memmap(path, np.uint64, "r", offset=first * flags.itemsize, shape=(count,))
        output, measured = OutputFolder.join(folder), OutputFolder.join(folder / MEASURES)
        report = self._plan.new_report()
        write_file(self._plan, output, measured, records, flags, report, lambda _: None)
        sendable = Report(rules=self._plan.rules.boundaries(), measures=report.histograms)
        sendable.merge(report)  # without the function that makes thumbnails
        return sendable


if __name__ == "__main__":
    sys.exit(main())
