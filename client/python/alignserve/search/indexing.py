"""Brings a store up to date with a source: puts rows that are new or changed, and deletes those not in it.

Each row of the store remembers its source and a version: size and modification time of a file, and a digest
of its content and columns. A row whose version is the same is neither embedded nor put again.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve._items import ImageItem, Item, StreamResult, TextItem
from alignserve.datasets.faults import Verdict, failure_of, verdict_on_item
from alignserve.datasets.row import Row, RowFailure
from alignserve.search.errors import OtherModelError, RowsRefusedError
from alignserve.search.sources import Source, SourceRow
from alignserve.search.space import space_of_store
from alignserve.search.store import BOOKKEEPING, Entry, Store

SOURCE = f"{BOOKKEEPING}source"
VERSION = f"{BOOKKEEPING}version"

_ROWS_AT_A_TIME = 2048  # looked up, embedded and put together; what a killed run has to do again
_BYTES_AT_A_TIME = 64 << 20  # of images that a source has read


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that is not in the store."""

    key: str
    failure: RowFailure


@dataclass(slots=True)
class Counts:
    """What happened to the rows of a source; each is in exactly one of these.

    Attributes:
        added: Rows that the store did not have.
        changed: Rows that it had in another version.
        unchanged: Rows that it had.
        failed: Rows without a result, by reason.
        removed: Rows of the store that the source no longer has, or that failed in their new version.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    removed: int = 0

    @property
    def rows(self) -> int:
        """Number of rows of the source."""
        return self.added + self.changed + self.unchanged + self.failed.total()

    def as_data(self) -> dict[str, Any]:
        """Returns the counts as JSON has them."""
        return {
            "rows": self.rows,
            "added": self.added,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "failed": dict(self.failed),
            "removed": self.removed,
        }

    def summary(self) -> str:
        """Returns the account in one line, for people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.failed.most_common())
        return (
            f"{self.rows} rows = {self.added} added + {self.changed} changed + {self.unchanged} unchanged + "
            f"{self.failed.total()} failed"
            + (f" ({reasons})" if reasons else "")
            + f"; {self.removed} removed"
        )

    def add(self, other: Counts) -> None:
        """Adds the counts of another source."""
        self.added += other.added
        self.changed += other.changed
        self.unchanged += other.unchanged
        self.failed += other.failed
        self.removed += other.removed


Embed = Callable[[Iterable[Item]], Iterable[StreamResult]]
"""Embeds items in any order, such as `Client.stream`; it may read them in a thread."""


class Indexer:
    """Brings a store up to date with sources, one after the other.

    Args:
        store: Opened for writing.
        embed: For rows without a vector.
        fingerprint: Of the server's model, asked for before vectors that it made are put.
        max_image_bytes: Of the server; larger files are not read.
        truncate: Whether texts that are too long are truncated.
        on_failure: Called for each row that failed.
        on_rows: Called with the number of rows that were done, and of those that failed.
    """

    def __init__(
        self,
        store: Store,
        embed: Embed,
        fingerprint: Callable[[], str],
        *,
        max_image_bytes: int,
        truncate: bool = False,
        on_failure: Callable[[Failure], None] = lambda _: None,
        on_rows: Callable[[int, int], None] = lambda _, __: None,
    ) -> None:
        self._store = store
        self._space = space_of_store(store)
        self._embed = embed
        self._fingerprint = fingerprint
        self._max_image_bytes = max_image_bytes
        self._truncate = truncate
        self._on_failure = on_failure
        self._on_rows = on_rows

    def index(self, source: Source, *, keeps_missing: bool = False) -> Counts:
        """Puts what is new or has changed, and deletes the source's rows that are no longer in it.

        Nothing is deleted if a part of the source could not be read.

        Args:
            source: Read from the front.
            keeps_missing: Delete nothing.

        Raises:
            AlignserveError: The server failed. Rows that were put stay, and the next run does the rest.
            OtherModelError: The server has another model now.
            StoreError: The store cannot be written.
        """
        counts = Counts()
        seen = [self._put_chunk(source.name, chunk, counts) for chunk in _chunks(source.rows())]
        if source.deletes and not source.problems and not keeps_missing:
            hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *seen]))
            counts.removed = self._delete_others(source.name, hashes)
        return counts

    def _put_chunk(self, source: str, chunk: Sequence[SourceRow], counts: Counts) -> NDArray[np.uint64]:
        """Returns the hashes of the keys that are now in the store."""
        states = dict(self._store.values([SOURCE, VERSION], [one.row.key for one in chunk]))
        done = _Outcome()
        pending: dict[str, _Pending] = {}
        for one in chunk:
            key = one.row.key
            try:
                if key in pending:
                    raise _RowError("KEY_TWICE", f"the source has key {key!r} twice; its first row is taken")
                pending[key] = self._pending(source, one, states.get(key))
            except _RowError as error:
                done.failures.append(Failure(key, error.failure))
        entries = list(self._entries(source, pending, done))
        if entries:
            self._check_model()
            entries = self._put(entries, done)
        self._count(done, [entry.key for entry in entries], states, counts)
        self._on_rows(len(chunk), len(done.failures))
        return _hashes([*done.unchanged, *(entry.key for entry in entries)])

    def _put(self, entries: list[Entry], done: _Outcome) -> list[Entry]:
        """Returns the rows that were put; rows that the store refuses fail."""
        try:
            self._store.put(entries)
        except RowsRefusedError as error:
            done.failures += [
                Failure(key, RowFailure("VALUE_INVALID", reason)) for key, reason in error.reasons.items()
            ]
            entries = [entry for entry in entries if entry.key not in error.reasons]
            self._store.put(entries)
        return entries

    def _pending(self, source: str, one: SourceRow, state: Mapping[str, Any] | None) -> _Pending:
        row = one.row
        if row.failure is not None:
            raise _RowError(row.failure.reason, row.failure.message)
        if state is not None and state[SOURCE] != source:
            raise _RowError(
                "KEY_TAKEN",
                f"the store has key {row.key!r} from {state[SOURCE]}; give this source a --key-prefix",
            )
        return _Pending(one, "" if state is None else str(state[VERSION]))

    def _entries(self, source: str, pending: Mapping[str, _Pending], done: _Outcome) -> Iterator[Entry]:
        for key, one in pending.items():
            if one.embedding is not None and one.is_new(one.embedding.tobytes()):
                yield one.entry(source, one.embedding)
            elif one.embedding is not None:
                done.unchanged.append(key)
        rest = [one for one in pending.values() if one.embedding is None]
        if not rest:
            return
        for result in self._embed(self._items(rest, done)):
            one = pending[result.id]
            if result.error is None:
                made = np.asarray(result.embedding, np.float32)[None, :]
                yield one.entry(source, self._space.taken(made, self._space.model_fingerprint)[0])
            elif verdict_on_item(result.error) is Verdict.ROW_FAILS:
                done.failures.append(Failure(one.row.key, failure_of(result.error)))
            else:
                raise result.error

    def _items(self, pending: Iterable[_Pending], done: _Outcome) -> Iterator[Item]:
        """Yields what has to be embedded, and reads each file only when its turn comes."""
        for one in pending:
            try:
                content = one.changed_content(self._max_image_bytes)
            except _RowError as error:
                done.failures.append(Failure(one.row.key, error.failure))
                continue
            if content is None:
                done.unchanged.append(one.row.key)
            elif isinstance(content, bytes):
                yield ImageItem(content, id=one.row.key)
            else:
                yield TextItem(content, truncate=self._truncate, id=one.row.key)

    def _check_model(self) -> None:
        fingerprint = self._fingerprint()
        if fingerprint != self._space.model_fingerprint:
            raise OtherModelError(
                f"the server has another model now, with fingerprint {fingerprint}; the store has "
                f"{self._space.model_fingerprint}; run the command again with a server of that model"
            )

    def _count(
        self, done: _Outcome, put: Sequence[str], states: Mapping[str, object], counts: Counts
    ) -> None:
        counts.unchanged += len(done.unchanged)
        changed = sum(key in states for key in put)
        counts.changed += changed
        counts.added += len(put) - changed
        for one in done.failures:
            counts.failed[one.failure.reason] += 1
            self._on_failure(one)

    def _delete_others(self, source: str, seen: NDArray[np.uint64]) -> int:
        states = self._store.values([SOURCE])
        missing = [key for key, state in states if state[SOURCE] == source and not _is_in(key, seen)]
        for start in range(0, len(missing), _ROWS_AT_A_TIME):
            self._store.delete(missing[start : start + _ROWS_AT_A_TIME])
        return len(missing)


class _RowError(Exception):
    """A row fails."""

    def __init__(self, reason: str, message: str) -> None:
        self.failure = RowFailure(reason, message)


@dataclass(slots=True)
class _Outcome:
    """What became of the rows of a chunk that are not put."""

    unchanged: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class _Pending:
    """A row whose version is compared with the store's.

    A version is `COLUMNS:FILE:CONTENT`: a digest of the columns, size and time of the file if there is one,
    and a digest of the image or text.
    """

    def __init__(self, one: SourceRow, known: str) -> None:
        self.row = one.row
        self.embedding = one.embedding
        self._known = known
        self._columns = _columns_digest(one.row)
        self._version = ""

    def changed_content(self, max_image_bytes: int) -> bytes | str | None:
        """Returns the image or the text to embed; `None` if the store has it.

        Raises:
            _RowError: The file cannot be read.
        """
        if isinstance(self.row.image, Path):
            try:
                return self._changed_file(self.row.image, max_image_bytes)
            except OSError as error:
                raise _RowError("FILE_UNREADABLE", str(error)) from None
        if self.row.image is not None:
            return self.row.image if self.is_new(self.row.image) else None
        text = self.row.text or ""
        return text if self.is_new(text.encode(errors="surrogatepass")) else None

    def is_new(self, content: bytes, stamp: str = "") -> bool:
        """Returns whether the store lacks this version; a file that was only touched is not new."""
        digest = blake2b(content, digest_size=16).hexdigest()
        self._version = f"{self._columns}:{stamp}:{digest}"
        columns, _, known = self._known.partition(":")
        return (columns, known.rpartition(":")[2]) != (self._columns, digest)

    def entry(self, source: str, embedding: NDArray[np.float32]) -> Entry:
        """Returns the row for the store."""
        columns = {**self.row.columns, SOURCE: source, VERSION: self._version}
        return Entry(self.row.key, embedding, columns)

    def _changed_file(self, file: Path, max_image_bytes: int) -> bytes | None:
        status = file.stat()  # before reading: a file that changes meanwhile differs next time
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise _RowError("FILE_UNREADABLE", f"{file} is not a regular file")
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
        if self._known.startswith(f"{self._columns}:{stamp}:"):
            return None
        if status.st_size > max_image_bytes:
            raise _RowError(
                "IMAGE_TOO_LARGE",
                f"the image has {status.st_size} bytes, but the server takes {max_image_bytes}",
            )
        content = file.read_bytes()
        return content if self.is_new(content, stamp) else None


def _chunks(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    chunk: list[SourceRow] = []
    size = 0
    for one in rows:
        chunk.append(one)
        size += len(one.row.image) if isinstance(one.row.image, bytes) else 0
        if len(chunk) == _ROWS_AT_A_TIME or size >= _BYTES_AT_A_TIME:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _columns_digest(row: Row) -> str:
    columns = json.dumps(dict(row.columns), sort_keys=True, default=str)
    return blake2b(columns.encode(), digest_size=8).hexdigest()


def _hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Returns 8 bytes for each key: the keys of many millions of rows would not fit into memory."""
    digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.uint64)


def _is_in(key: str, sorted_hashes: NDArray[np.uint64]) -> bool:
    (wanted,) = _hashes([key])
    place = int(np.searchsorted(sorted_hashes, wanted))
    return place < len(sorted_hashes) and bool(sorted_hashes[place] == wanted)
