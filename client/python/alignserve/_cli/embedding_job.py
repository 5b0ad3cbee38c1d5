"""Runs `embed-dataset`: opens the source, the servers and the output, and says what became of every row."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from alignserve._cli.connection import client_options, server_names
from alignserve._cli.job_progress import JobProgress
from alignserve._cli.job_sources import opened, source_options
from alignserve._cli.output import complain
from alignserve._client_async import AsyncClient
from alignserve._results import ModelInfo
from alignserve.datasets.embedding import EmbedOptions, RowCounter, embed
from alignserve.datasets.faults import RunError
from alignserve.datasets.ledger import Ledger
from alignserve.datasets.opened import KINDS, Kind
from alignserve.datasets.output import FAILURES, OutputFolder
from alignserve.datasets.records import ShardRecord
from alignserve.datasets.selection import Selection
from alignserve.datasets.servers import DIRECT, Servers
from alignserve.datasets.sinks import Sink
from alignserve.datasets.sinks.clip_retrieval import ClipRetrievalSink
from alignserve.datasets.sinks.parquet import ParquetSink
from alignserve.datasets.source import BrokenSourceError, Dataset, SourceFile
from alignserve.datasets.sources import open_dataset
from alignserve.datasets.sources.unreadable import UNREADABLE

_OK, _SOME_FAILED = 0, 1
_STOPPED = 128  # plus the number of the signal, as shells report it
_SINKS: Mapping[str, type[ParquetSink] | type[ClipRetrievalSink]] = {
    "parquet": ParquetSink,
    "clip-retrieval": ClipRetrievalSink,
}
_RESUME = "its finished shards are kept; run the same command with --resume to do the rest"


class Embed(Protocol):
    """Embeds rows, as `datasets.embedding.embed` does in this process."""

    async def __call__(
        self,
        dataset: Dataset,
        output: OutputFolder,
        sink: Sink,
        servers: Servers,
        options: EmbedOptions,
        *,
        counter: RowCounter | None = None,
    ) -> None: ...


def run(args: argparse.Namespace, embed: Embed = embed) -> int:
    """Embeds the rows, or counts them, and returns the exit code."""
    selection = Selection.read(args.only) if args.only else None
    args.server = ", ".join(server_names(args))  # for messages
    if args.dry_run:
        return _count(_opened(args, selection, None))
    return asyncio.run(_embed(args, selection, embed))


async def _embed(args: argparse.Namespace, selection: Selection | None, embed: Embed) -> int:
    async with _connected(args) as servers:
        dataset = await asyncio.to_thread(_opened, args, selection, servers.info)
        kinds = _kinds(args, dataset)
        options = EmbedOptions(
            kinds=kinds,
            dtype=args.dtype,
            truncate=args.truncate,
            rows_per_shard=args.rows_per_shard,
            streams=args.streams,
            window=args.window,
            max_outage_seconds=args.max_outage_seconds,
            read_threads=args.read_threads,
        )
        sink: Sink = _SINKS[args.layout](
            dataset.schema,
            kinds,
            servers.info,
            args.dtype,
            has_text=dataset.has_texts,
            has_path="image" in kinds and dataset.has_image_files,
        )
        manifest = await asyncio.to_thread(_manifest, args, dataset, selection, servers.info, kinds, sink)
        with OutputFolder.create(args.folder, manifest, resume=args.resume, sources=args.source) as output:
            job = _Run(args, dataset, selection, output, embed)
            return await job.run(sink, servers, options)


class _Run:
    """A run that has begun: whatever ends it, the account is written and printed."""

    def __init__(
        self,
        args: argparse.Namespace,
        dataset: Dataset,
        selection: Selection | None,
        output: OutputFolder,
        embed: Embed,
    ) -> None:
        self._args = args
        self._embed = embed
        self._dataset = dataset
        self._selection = selection
        self._output = output
        self._stopped_by: signal.Signals | None = None

    async def run(self, sink: Sink, servers: Servers, options: EmbedOptions) -> int:
        counter = await asyncio.to_thread(self._counter)
        try:
            with self._stopping_on_signals():
                await self._embed(self._dataset, self._output, sink, servers, options, counter=counter)
        except asyncio.CancelledError:
            if self._stopped_by is None:
                raise
            self._end(counter)
            complain(f"stopped by {self._stopped_by.name}; {_RESUME}")
            return _STOPPED + self._stopped_by
        except BaseException as error:
            with contextlib.suppress(OSError):  # a disk that is full has no room for the account
                self._end(counter)
            complain(f"the run has ended early; {_RESUME}")
            if isinstance(error, RunError):
                raise error.error from error.error.__cause__
            raise
        ledger = self._end(counter, is_done=True)
        return _OK if ledger.is_success else _SOME_FAILED

    def _counter(self) -> _Counter:
        """Returns the display, after counting the rows of the source if that is asked for."""
        account = self._output.account()
        before = account.rows_in
        if before:
            complain(f"{before} rows were done before")
        total = _counted(self._dataset).rows_in - before if self._args.count else None
        return _Counter(JobProgress(sys.stderr, files=account.unfinished_files, total=total))

    def _end(self, counter: _Counter, *, is_done: bool = False) -> Ledger:
        """Writes the account, and prints it as the last line."""
        counter.progress.finish()
        problems = [*self._dataset.problems, *(self._late_problems() if is_done else ())]
        ledger = self._output.finish(skipped=self._dataset.skipped, problems=problems)
        _report(ledger)
        failures = os.fsencode(self._output.folder / FAILURES).decode(errors="backslashreplace")
        print(f"{ledger.summary()}{f'; see {failures}' if ledger.failed else ''}")
        return ledger

    def _late_problems(self) -> Iterator[str]:
        """Yields what has shown since the sources were opened."""
        keys = self._selection.keys if self._selection else ()
        if (rows := self._output.account().rows_in) < len(keys):
            yield f"{len(keys) - rows} of the rows in {self._args.only} are not in the source"
        for source, file in zip(self._output.manifest["sources"], self._dataset.files, strict=True):
            if source["digest"] not in (None, _digest(file)):
                problem = (
                    f"source {source['name']} has changed during the run; its rows may be of both versions"
                )
                complain(f"problem: {problem}")
                yield problem

    @contextlib.contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """Cancels the task at the first SIGINT or SIGTERM; a second one ends the process."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101 — it runs in one

        def stop(which: signal.Signals) -> None:
            self._stopped_by = which
            loop.remove_signal_handler(which)
            task.cancel()

        for which in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(which, stop, which)
        try:
            yield
        finally:
            for which in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(which)


class _Counter(RowCounter):
    def __init__(self, progress: JobProgress) -> None:
        self.progress = progress

    def row(self, *, failed: bool) -> None:
        self.progress.row(failed=failed)

    def committed(self, record: ShardRecord) -> None:
        if record.is_last or record.broken:
            self.progress.file()


@asynccontextmanager
async def _connected(args: argparse.Namespace) -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(retry=DIRECT, **client_options(args, name)))
            for name in server_names(args)
        ]
        yield await Servers.connect(clients, wait_seconds=args.wait_seconds)


def _opened(args: argparse.Namespace, selection: Selection | None, info: ModelInfo | None) -> Dataset:
    dataset = opened(lambda: open_dataset(args.source, source_options(args, info)))
    return dataset if selection is None else selection.of(dataset)


def _kinds(args: argparse.Namespace, dataset: Dataset) -> tuple[Kind, ...]:
    has: Mapping[Kind, bool] = {"image": dataset.has_images, "text": dataset.has_texts}
    kinds: tuple[Kind, ...] = args.embed or tuple(kind for kind in KINDS if has[kind])
    for kind in kinds:
        if not has[kind]:
            raise ValueError(f"the source has no {kind}s; name their column with --{kind}-column")
    return kinds


def _manifest(
    args: argparse.Namespace,
    dataset: Dataset,
    selection: Selection | None,
    info: ModelInfo,
    kinds: tuple[Kind, ...],
    sink: Sink,
) -> dict[str, Any]:
    return {
        "job": "embed",
        "model": {
            "id": info.model_id,
            "fingerprint": info.fingerprint,
            "embedding_dimension": info.embedding_dimension,
        },
        "dtype": args.dtype,
        "sources": [{"name": file.name, "digest": _digest(file)} for file in dataset.files],
        "options": {
            "embed": kinds,
            "layout": args.layout,
            "truncate": args.truncate,
            "rows_per_shard": args.rows_per_shard,
            "only": selection.digest if selection else None,
            "kind": args.kind,
            "image_column": args.image_column,
            "text_column": args.text_column,
            "key_column": args.key_column,
            "columns": args.columns,
            "image_root": str(args.image_root) if args.image_root else None,
            "delimiter": args.delimiter,
        },
        "columns": sink.columns,
    }


def _digest(file: SourceFile) -> str | None:
    try:
        digest = file.digest()
    except (OSError, BrokenSourceError):  # its rows will say so
        return None
    return None if digest == UNREADABLE else digest


def _count(dataset: Dataset) -> int:
    ledger = _counted(dataset)
    _report(ledger)
    usable = ledger.rows_in - ledger.failed.total()
    reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.failed.most_common())
    print(f"{ledger.rows_in} rows, {usable} of them can be sent" + (f"; not {reasons}" if reasons else ""))
    return _OK if ledger.is_success else _SOME_FAILED


def _counted(dataset: Dataset) -> Ledger:
    """Reads all rows, and returns their number and the failures that show while reading."""
    ledger = Ledger(skipped=dataset.skipped, problems=dataset.problems)
    for file in dataset.files:
        try:
            for row, _ in file.rows():
                ledger.rows_in += 1
                if row.failure is not None:
                    ledger.failed[row.failure.reason] += 1
        except BrokenSourceError as error:
            ledger.broken.append(str(error))
    ledger.rows_out = ledger.rows_in - ledger.failed.total()
    return ledger


def _report(ledger: Ledger) -> None:
    for line in ledger.broken:
        complain(line)
