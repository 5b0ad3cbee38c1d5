"""The folder that a job writes: a manifest, shards that are committed whole, and a record of each.

    FOLDER/manifest.json               the model, sources and options, and the account
    FOLDER/part-00003-00012.parquet    shard 12 of source file 3; other layouts have other names
    FOLDER/records/00003-00012.json    its record, written after its data
    FOLDER/failures.jsonl              a line for each row that failed, written at the end

A shard without a record does not exist. Source files are independent of each other, so several workers can do
different files of one output at the same time: one process creates the output, and the others join it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from alignserve import __version__
from alignserve.datasets import durable
from alignserve.datasets.ledger import Ledger
from alignserve.datasets.lock import FolderLock
from alignserve.datasets.nesting import source_around
from alignserve.datasets.records import FailedRow, ShardRecord, WrittenFile
from alignserve.datasets.source import Cursor

FORMAT, VERSION = "alignserve-dataset", 1
MANIFEST, FAILURES = "manifest.json", "failures.jsonl"

_RECORDS, _DRAFTS, _LOCK = "records", ".drafts", ".lock"
_OWN = frozenset({_LOCK, _DRAFTS, f"{MANIFEST}.draft"})  # what an output may have before its manifest
_SHARD_NAME = re.compile(r"(?:^|.*[-_])(\d{5,})-(\d{5})\.[a-z]+")
_MAX_SHARDS = 100_000  # numbers of five digits
_MAX_NAMED = 3  # differences in a message


class OutputError(ValueError):
    """The output cannot be used as asked; nothing in it was changed."""


class OutputBusyError(OutputError):
    """Another run is writing into the folder."""


class OutputNotEmptyError(OutputError):
    """The folder has content, and the run is not to resume, or the content is not a job's."""


class OutputDiffersError(OutputError):
    """The folder was begun with other sources, another model or other options."""


class OutputInsideSourceError(OutputError):
    """The folder lies in a source, which would then contain its own embeddings."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows of a source file whose shards are missing or damaged, and are done again.

    Attributes:
        shard: Number of the first shard.
        start: Position of the first row.
        end: Position behind the last row.
    """

    shard: int
    start: Cursor
    end: Cursor


@dataclass(frozen=True, slots=True)
class FileProgress:
    """The rest of a source file that is to be done.

    Attributes:
        cursor: Where to go on behind the last good shard.
        next_shard: Number of the shard that begins there.
        is_complete: Whether nothing is left behind the last good shard.
        broken: Why an earlier run could not read beyond `cursor`, or `None`.
        gaps: Rows before it that are done again.
    """

    cursor: Cursor = 0
    next_shard: int = 0
    is_complete: bool = False
    broken: str | None = None
    gaps: tuple[Gap, ...] = ()


class OutputFolder:
    """The output of a job; a context manager, which releases the lock."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], lock: FolderLock | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = lock
        self._file_digits = max(5, len(str(len(manifest["sources"]) - 1)))
        self._data = _numbered_files([folder, *_folders_of_data(folder)])
        self._shards = self._recorded_shards()

    @classmethod
    def create(
        cls,
        folder: Path,
        manifest: Mapping[str, Any],
        *,
        resume: bool,
        sources: Sequence[str | Path] = (),
    ) -> OutputFolder:
        """Begins an output, or goes on with one, and locks it.

        Args:
            folder: Created if it does not exist.
            manifest: What the job is asked for, as JSON: `job`, `sources` (a list of `name` and `digest`)
                and everything else that must be the same when it is resumed.
            resume: Go on with what an earlier run has left, if there is any.
            sources: Paths and patterns from which the rows come.

        Raises:
            OutputError: One of its subclasses says why it is refused.
            OSError: The folder cannot be written.
        """
        if (source := source_around(folder, sources)) is not None:
            raise OutputInsideSourceError(
                f"the output {folder} lies inside the source {source}; choose a folder outside of it"
            )
        asked: dict[str, Any] = json.loads(json.dumps(manifest))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FolderLock(folder / _LOCK)
        except BlockingIOError as error:
            raise OutputBusyError(f"{folder} is being written by {error}") from None
        try:
            found = _checked(folder, asked, resume=resume)
            begun = {"format": FORMAT, "version": VERSION, "started_at": _now(), **(found or {}), **asked}
            output = cls(folder, {**begun, "state": "running", "alignserve_version": __version__}, lock)
            output._prepare()
        except BaseException:
            lock.release()
            raise
        return output

    @classmethod
    def join(cls, folder: Path) -> OutputFolder:
        """Returns an output that another process has created and still locks, to commit shards to it.

        No two processes may do the same source file.

        Raises:
            OutputError: It is not an output.
        """
        return cls(folder, read_manifest(folder), None)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            shutil.rmtree(self.folder / _DRAFTS, ignore_errors=True)
            self._lock.release()
            self._lock = None

    def stem(self, file: int, shard: int) -> str:
        """Returns the number of a shard as its files have it; sorted names are in the order of the rows.

        Raises:
            OutputError: There are too many shards.
        """
        if shard >= _MAX_SHARDS:
            raise OutputError(f"source file {file} has more than {_MAX_SHARDS} shards; make them larger")
        return f"{file:0{self._file_digits}}-{shard:05}"

    def draft(self) -> Path:
        """Returns a path for a file that is not complete yet, on the disk of the output."""
        return self.folder / _DRAFTS / uuid.uuid4().hex

    def progress(self, file: int) -> FileProgress:
        """Returns what is left of a source file, after checking its shards on the disk by their digests.

        Shards that are missing or damaged are removed, records first.
        """
        progress, gaps = FileProgress(), []
        for shard in self._shards.get(file, ()):
            record = self._intact(file, shard)
            if record is None:
                self._remove(file, shard)
                continue
            if record.start > progress.cursor:
                gaps.append(Gap(progress.next_shard, progress.cursor, record.start))
            progress = FileProgress(record.end, shard + 1, record.is_last, record.broken)
        return replace(progress, gaps=tuple(gaps))

    def commit(
        self, record: ShardRecord, drafts: Mapping[str, Path], *, rows: int | None = None
    ) -> ShardRecord:
        """Makes a shard exist, in full or not at all, and returns its complete record.

        Args:
            record: Of the shard, without its `outputs`.
            drafts: Complete files by their final names in the folder, such as `part-00000-00000.parquet`.
                A shard without rows has no files.
            rows: Of each file; the default is the record's `rows_out`.

        Raises:
            ValueError: The account of the record is not balanced.
            OSError: The disk is full, for example; the shard does not exist then.
        """
        if not record.is_balanced:
            raise ValueError(
                f"shard {self.stem(record.file, record.shard)} has {record.rows_in} rows in, but "
                f"{record.rows_out} out and {len(record.failures)} failed"
            )
        count = record.rows_out if rows is None else rows
        outputs = {name: _measured(path, count) for name, path in drafts.items()}
        for name, path in drafts.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            durable.move(path, self.folder / name)
        complete = replace(record, outputs=outputs)
        durable.write_json(self._record_path(record.file, record.shard), complete.as_json())
        return complete

    def finish(self, *, skipped: Mapping[str, int] | None = None, problems: Sequence[str] = ()) -> Ledger:
        """Writes the account of all shards into the manifest, and the failures; returns the account.

        It is called when a run ends, whether or not everything is done: the manifest's `state` says which.

        Args:
            skipped: Files of the source that are not rows, by suffix or kind.
            problems: What could not be looked into.

        Raises:
            UnbalancedError: Rows were lost or counted twice.
        """
        ledger = Ledger(skipped=Counter(skipped or {}), problems=list(problems))
        durable.write_lines(self.folder / FAILURES, self._counted(ledger))
        ledger.check()
        self.manifest = {
            **self.manifest,
            "state": "complete" if ledger.is_complete else "incomplete",
            "ledger": ledger.as_json(),
            "finished_at": _now(),
        }
        durable.write_json(self.folder / MANIFEST, self.manifest)
        return ledger

    def account(self) -> Ledger:
        """Returns the account of all shards so far."""
        ledger = Ledger()
        for _ in self._counted(ledger):
            pass
        return ledger

    def records(self, file: int | None = None) -> Iterator[ShardRecord]:
        """Yields the records of all shards so far, or of one source file's, in the order of the rows."""
        for number, shards in sorted(self._recorded_shards().items()):
            if file in (None, number):
                yield from filter(None, (self._record(number, shard) for shard in shards))

    def _prepare(self) -> None:
        shutil.rmtree(self.folder / _DRAFTS, ignore_errors=True)
        (self.folder / _DRAFTS).mkdir()
        durable.write_json(self.folder / MANIFEST, self.manifest)
        (self.folder / _RECORDS).mkdir(exist_ok=True)
        for file, shard in self._data:
            if shard not in self._shards.get(file, ()):
                self._remove(file, shard)

    def _counted(self, ledger: Ledger) -> Iterator[str]:
        """Yields the lines of all failures, and adds all shards to the ledger."""
        shards = self._recorded_shards()  # those of the other workers too
        for file, source in enumerate(self.manifest["sources"]):
            position, is_whole, last = 0, True, None
            for record in filter(None, (self._record(file, shard) for shard in shards.get(file, ()))):
                ledger.add(record)
                yield from (_failure_line(failure, source["name"]) for failure in record.failures)
                is_whole = is_whole and record.start == position
                position, last = record.end, record
            if last is not None and last.broken is not None:
                ledger.broken.append(last.broken)
            if not is_whole or last is None or not last.is_last:
                ledger.unfinished_files += 1

    def _recorded_shards(self) -> dict[int, list[int]]:
        """Returns the shards of each source file that have a record, in order."""
        shards: dict[int, list[int]] = defaultdict(list)
        for file, shard in sorted(_numbered_files([self.folder / _RECORDS])):
            shards[file].append(shard)
        return shards

    def _record(self, file: int, shard: int) -> ShardRecord | None:
        with contextlib.suppress(OSError, ValueError):
            record = ShardRecord.from_json(self._record_path(file, shard).read_text())
            if (record.file, record.shard) == (file, shard):
                return record
        return None

    def _intact(self, file: int, shard: int) -> ShardRecord | None:
        record = self._record(file, shard)
        if record is None:
            return None
        is_intact = all(_is_intact(self.folder / name, wanted) for name, wanted in record.outputs.items())
        return record if is_intact else None

    def _remove(self, file: int, shard: int) -> None:
        self._record_path(file, shard).unlink(missing_ok=True)
        durable.sync(self.folder / _RECORDS)
        for path in self._data.get((file, shard), ()):
            path.unlink(missing_ok=True)

    def _record_path(self, file: int, shard: int) -> Path:
        return self.folder / _RECORDS / f"{self.stem(file, shard)}.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of an output.

    Raises:
        OutputError: The folder is not an output of this version.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        kind = (manifest["format"], manifest["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{folder} is not an output of alignserve: no valid {MANIFEST}") from error
    if kind != (FORMAT, VERSION):
        raise OutputError(f"{folder} has format {kind[0]} {kind[1]}; this version reads {FORMAT} {VERSION}")
    return manifest


def check_whole(manifest: Mapping[str, Any], rows: int, folder: Path) -> None:
    """Checks that an output has been written to its end, and that its parts have all rows of its account.

    Args:
        manifest: Of the output; an empty one, or that of a curation, which may leave rows out, counts none.
        rows: Number of rows in the parts.
        folder: For the message.

    Raises:
        OutputError: The job has not finished, or parts are missing.
    """
    if manifest.get("state") == "running":
        raise OutputError(f"{folder}: its job has not finished; complete it with --resume first")
    ledger = manifest.get("ledger")
    if manifest.get("format") != FORMAT or manifest.get("job") == "curate" or not isinstance(ledger, dict):
        return
    counted = ledger.get("rows_out")
    if isinstance(counted, int) and rows < counted:
        raise OutputError(
            f"{folder} has {rows} rows in its parts, but its {MANIFEST} counts {counted}: parts are missing; "
            "restore them, or run the job again with --resume"
        )


def _checked(folder: Path, asked: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """Returns the manifest of the run to go on with, or `None` if there was none."""
    names = {path.name for path in folder.iterdir()} - _OWN
    if not names:
        return None
    if MANIFEST not in names:
        raise OutputNotEmptyError(f"{folder} has content that is not of a job; choose an empty folder")
    if not resume:
        raise OutputNotEmptyError(
            f"{folder} has the output of an earlier run; go on with --resume, or choose another folder"
        )
    manifest = read_manifest(folder)
    differences = list(_differences(manifest, asked))
    if differences:
        more = f" and {len(differences) - _MAX_NAMED} more" if len(differences) > _MAX_NAMED else ""
        raise OutputDiffersError(
            f"{folder} cannot be resumed: {'; '.join(differences[:_MAX_NAMED])}{more}; "
            "use the same sources, model and options, or another folder"
        )
    return manifest


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in now.items():
        was = before.get(name)
        where = f"{path}{name}"
        if where == "sources":
            yield from _changed_sources(was or [], value)
        elif isinstance(value, dict) and isinstance(was, dict):
            yield from _differences(was, value, f"{where}.")
        elif value != was:
            yield f"{where} was {was} and is now {value}"


def _changed_sources(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    old = {source["name"]: source["digest"] for source in before}
    new = {source["name"]: source["digest"] for source in now}
    for name in old.keys() | new.keys():
        if name not in new:
            yield f"source {name} is gone"
        elif name not in old:
            yield f"source {name} is new"
        elif old[name] not in (new[name], None):  # None: it could not be read
            yield f"source {name} has changed"
    if old == new and list(old) != list(new):
        yield "the sources come in another order"


def _folders_of_data(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and path.name not in (_RECORDS, _DRAFTS)]


def _numbered_files(folders: Sequence[Path]) -> dict[tuple[int, int], list[Path]]:
    """Returns the files in these folders whose names number a shard, by file and shard."""
    found: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if match := _SHARD_NAME.fullmatch(path.name):
            found[int(match[1]), int(match[2])].append(path)
    return dict(found)


def _failure_line(failure: FailedRow, source: str) -> str:
    line = {"key": failure.key, "reason": failure.reason, "message": failure.message, "source": source}
    return json.dumps(line)


def _measured(path: Path, rows: int) -> WrittenFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(file.tell(), digest, rows)


def _is_intact(path: Path, wanted: WrittenFile) -> bool:
    try:
        return path.stat().st_size == wanted.bytes and _measured(path, wanted.rows) == wanted
    except OSError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
