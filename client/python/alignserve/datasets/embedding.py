"""The job: rows from a dataset go over streams to the servers, and into shards in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from alignserve._items import Dtype, ImageItem, StreamResult, TextItem
from alignserve._results import EmbeddingArray
from alignserve.datasets.backlog import Backlog
from alignserve.datasets.faults import failure_of
from alignserve.datasets.loading import Loader
from alignserve.datasets.opened import KINDS, Kind, OpenRow, OpenShard
from alignserve.datasets.output import OutputFolder
from alignserve.datasets.records import FailedRow, ShardRecord
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.servers import Part, Servers
from alignserve.datasets.shards import ShardEnd, read_shards
from alignserve.datasets.sinks import Sink
from alignserve.datasets.source import Dataset

_AHEAD = 2  # times the windows of all streams, so that they never wait for the reader
_MAX_BYTES = 256 << 20  # of images and texts in flight
_MAX_OPEN_SHARDS = 64
_MISSING = {
    "image": RowFailure("IMAGE_MISSING", "the row has no image; --embed text embeds texts only"),
    "text": RowFailure("TEXT_MISSING", "the row has no text; --embed image embeds images only"),
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How to embed.

    Attributes:
        kinds: What of each row; a row fails if one of them is missing or fails.
        dtype: Of the embeddings: `float32` or `float16`.
        truncate: Truncate texts that are too long, instead of failing their rows.
        rows_per_shard: Maximum number of rows in a shard.
        streams: Per server.
        window: Items in flight per stream; `None` is what the server takes.
        max_outage_seconds: How long rows may wait without an answer from any server.
        read_threads: Threads that read the files of images.
    """

    kinds: tuple[Kind, ...] = KINDS
    dtype: Dtype = "float32"
    truncate: bool = False
    rows_per_shard: int = 10_000
    streams: int = 2
    window: int | None = None
    max_outage_seconds: float = 300.0
    read_threads: int = 8


class RowCounter:
    """Is told about each row and shard of a running job; a display overrides these methods."""

    def row(self, *, failed: bool) -> None:
        """Counts a row that has its result or failure."""

    def committed(self, record: ShardRecord) -> None:
        """Counts a shard that is on the disk."""


async def embed(
    dataset: Dataset,
    output: OutputFolder,
    sink: Sink,
    servers: Servers,
    options: EmbedOptions,
    *,
    files: Iterable[int] | None = None,
    counter: RowCounter | None = None,
) -> None:
    """Embeds the rows that an output does not have yet, and commits them shard by shard.

    Memory holds the rows of at most two shards and `_MAX_BYTES` of images; it does not grow with the dataset.

    Args:
        dataset: The rows.
        output: Where they go; `OutputFolder.finish` remains to be called.
        sink: Writes the files of a shard.
        servers: That embed.
        options: How.
        files: Numbers of the source files to do; `None` for all.
        counter: Told about every row and shard.

    Raises:
        RunError: The servers do not answer, or refuse; no row is to blame, and the run can be resumed.
        ModelChangedError: A server has another model than the run began with.
        OSError: The output cannot be written, for example because the disk is full.
    """
    job = _Job(output, sink, servers, options, counter or RowCounter())
    numbers = range(len(dataset.files)) if files is None else files
    with ExitStack() as stack:
        loader = stack.enter_context(
            Loader(
                _events(dataset, output, numbers, options.rows_per_shard),
                max_image_bytes=servers.info.max_image_bytes,
                threads=options.read_threads,
            )
        )
        stack.enter_context(job)  # left first, since its threads use the loader
        try:
            await job.run(loader)
        except BaseExceptionGroup as group:
            raise _first(group) from None


def _events(
    dataset: Dataset, output: OutputFolder, numbers: Iterable[int], rows_per_shard: int
) -> Iterator[tuple[int, Row | ShardEnd]]:
    for number in numbers:
        progress = output.progress(number)
        for event in read_shards(dataset.files[number], progress, rows_per_shard):
            yield number, event


class _Job:
    """Reads, sends and writes side by side, each bounded by the next."""

    def __init__(
        self, output: OutputFolder, sink: Sink, servers: Servers, options: EmbedOptions, counter: RowCounter
    ) -> None:
        self._output = output
        self._sink = sink
        self._servers = servers
        self._options = options
        self._counter = counter
        self._window = options.window or servers.info.max_stream_in_flight
        in_flight = self._window * options.streams * servers.count * _AHEAD
        self._backlog: Backlog[Part] = Backlog(in_flight, _MAX_BYTES)
        self._open: asyncio.Queue[OpenShard | None] = asyncio.Queue(_MAX_OPEN_SHARDS)
        self._room = _Room(2 * options.rows_per_shard)
        self._places: dict[int, tuple[OpenShard, OpenRow, Kind]] = {}  # of parts, by their identity
        # One thread each: rows are read one after the other, and shards are committed in order.
        self._reading = ThreadPoolExecutor(1, "alignserve-read")
        self._writing = ThreadPoolExecutor(1, "alignserve-write")

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *_: object) -> None:
        # Waits: a commit that has begun is finished, and the account that follows includes it.
        self._reading.shutdown(cancel_futures=True)
        self._writing.shutdown(cancel_futures=True)

    async def run(self, loader: Loader) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                self._servers.run(
                    self._backlog,
                    self._take,
                    streams=self._options.streams,
                    window=self._window,
                    max_outage_seconds=self._options.max_outage_seconds,
                )
            )
            tasks.create_task(self._read(loader))
            await self._write()
            self._backlog.close()

    async def _read(self, loader: Loader) -> None:
        shard: OpenShard | None = None
        while chunk := await _in(self._reading, loader.next_chunk):
            for file, event, path in chunk:
                if shard is None:
                    shard = OpenShard(file)
                    await self._open.put(shard)
                if isinstance(event, ShardEnd):
                    shard.close(event)
                    shard = None
                else:
                    await self._send(shard, event, path)
            await self._backlog.wait_for_room()
        await self._open.put(None)

    async def _send(self, shard: OpenShard, row: Row, path: str | None) -> None:
        await self._room.enter()
        opened = OpenRow(row.key, row.text, row.columns, path, row.failure)
        parts = [] if row.failure else self._parts(row)
        for kind, part in parts:
            if part is None:
                opened.fail(_MISSING[kind])
        if opened.failure is not None:
            parts = []
        opened.pending = len(parts)
        shard.begin(opened)
        for kind, part in parts:
            assert part is not None  # noqa: S101 — the row would have failed
            self._places[id(part)] = shard, opened, kind
            self._backlog.add(part)
        if not parts:
            self._counter.row(failed=True)

    def _parts(self, row: Row) -> list[tuple[Kind, Part | None]]:
        return [(kind, self._part(row, kind)) for kind in self._options.kinds]

    def _part(self, row: Row, kind: Kind) -> Part | None:
        dtype = self._options.dtype
        if kind == "image":
            image = cast("bytes | None", row.image)  # the loader has read it
            return None if image is None else Part(ImageItem(image, dtype=dtype), len(image), row.key)
        if row.text is None:
            return None
        text = TextItem(row.text, truncate=self._options.truncate, dtype=dtype)
        return Part(text, len(row.text), row.key)

    def _take(self, part: Part, result: StreamResult) -> None:
        shard, row, kind = self._places.pop(id(part))
        if result.error is not None:
            row.fail(failure_of(result.error))
        elif row.failure is None:
            row.vectors[kind] = cast("EmbeddingArray", result.value)
        if shard.finish(row):
            self._counter.row(failed=row.failure is not None)

    async def _write(self) -> None:
        while (shard := await self._open.get()) is not None:
            end = await shard.wait()
            await self._servers.check()
            record = await _in(self._writing, lambda: self._commit(shard, end))  # noqa: B023 — awaited here
            self._room.leave(len(shard.rows))
            self._counter.committed(record)

    def _commit(self, shard: OpenShard, end: ShardEnd) -> ShardRecord:
        stem = self._output.stem(shard.file, end.shard)
        drafts = self._sink.write(shard.rows, stem, self._output.draft)
        failures = [FailedRow.of(row.key, row.failure) for row in shard.rows if row.failure is not None]
        record = ShardRecord(
            file=shard.file,
            shard=end.shard,
            start=end.start,
            end=end.end,
            is_last=end.is_last,
            rows_in=end.rows,
            rows_out=drafts.rows,
            failures=tuple(failures),
            broken=end.broken,
        )
        return self._output.commit(record, drafts.files)


class _Room:
    """Bounds the rows of shards that are not on the disk yet."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows = 0
        self._changed = asyncio.Event()

    async def enter(self) -> None:
        """Adds a row, once there is room for it."""
        while self._rows >= self._max_rows:
            self._changed.clear()
            await self._changed.wait()
        self._rows += 1

    def leave(self, rows: int) -> None:
        """Removes the rows of a shard."""
        self._rows -= rows
        self._changed.set()


async def _in(executor: ThreadPoolExecutor, call: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(executor, call)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """Returns the error that ended a group; the others were cancelled because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
