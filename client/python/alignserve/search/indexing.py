"""Brings a store up to date with a source: new and changed rows are put, unchanged ones left, missing ones deleted.

Each row of the store remembers its source and a version: size and modification time of a file, and a digest of its
content and columns. A row whose version is the same is neither embedded nor put again.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve._items import ImageItem, Item, StreamResult, TextItem
from alignserve.datasets.row import Row, RowFailure
from alignserve.errors import AlignserveError
from alignserve.search.errors import OtherModelError
from alignserve.search.sources import Source, SourceRow
from alignserve.search.store import BOOKKEEPING, Entry, Store

SOURCE = f"{BOOKKEEPING}source"
VERSION = f"{BOOKKEEPING}version"

_ROWS_AT_A_TIME = 2048  # looked up, embedded and put together; what a killed run has to do again


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

    def add(self, other: Counts) -> None:
        """Adds the counts of another source."""
        self.added += other.added
        self.changed += other.changed
        self.unchanged += other.unchanged
        self.failed += other.failed
        self.removed += other.removed


Embed = Callable[[Iterable[Item]], Iterable[StreamResult]]
"""Embeds items in any order, such as `Client.stream`."""


class Indexer:
    """Brings a store up to date with sources, one after the other.

    Args:
        store: Opened for writing.
        embed: For rows without a vector.
        fingerprint: Asks the server for its model's; it is compared before vectors are put.
        max_image_bytes: Of the server; larger files are not read.
        truncate: Whether texts that are too long are truncated.
        on_failure: Called for each row that failed.
        on_progress: Called with the number of rows that were done, and of those that failed.
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
        on_progress: Callable[[int, int], None] = lambda _, __: None,
    ) -> None:
        self._store = store
        self._embed = embed
        self._fingerprint = fingerprint
        self._max_image_bytes = max_image_bytes
        self._truncate = truncate
        self._on_failure = on_failure
        self._on_progress = on_progress

    def index(self, source: Source, *, keeps_missing: bool = False) -> Counts:
        """Puts what is new or has changed, and deletes the source's rows that are no longer in it.

        Nothing is deleted if a part of the source could not be read.

        Args:
            source: Read from the front.
            keeps_missing: Delete nothing.

        Raises:
            AlignserveError: The server failed or has another model; what was put stays.
            StoreError: The store cannot be written.
        """
        counts = Counts()
        seen: list[NDArray[np.uint64]] = []
        rows = iter(source.rows())
        while chunk := list(itertools.islice(rows, _ROWS_AT_A_TIME)):
            seen.append(self._put_chunk(source.name, chunk, counts))
        if source.deletes and not source.problems and not keeps_missing:
            counts.removed = self._delete_others(source.name, np.concatenate([np.empty(0, np.uint64), *seen]))
        return counts

    def _put_chunk(self, source: str, chunk: Sequence[SourceRow], counts: Counts) -> NDArray[np.uint64]:
        """Returns the hashes of the keys that are now in the store."""
        states = {key: values for key, values in self._store.values([SOURCE, VERSION], [one.row.key for one in chunk])}
        pending: dict[str, _Pending] = {}
        kept: list[str] = []
        failed = counts.failed.total()
        for one in chunk:
            state = states.get(one.row.key)
            outcome = self._compared(source, one, state)
            if isinstance(outcome, RowFailure):
                self._fail(one.row.key, outcome, counts)
            elif one.row.key in pending:
                self._fail(one.row.key, _twice(one.row.key), counts)
            elif outcome is None:
                counts.unchanged += 1
                kept.append(one.row.key)
            else:
                pending[one.row.key] = outcome
        entries = list(self._entries(pending, source, counts))
        self._check_model()
        self._store.put(entries)
        for entry in entries:
            if entry.key in states:
                counts.changed += 1
            else:
                counts.added += 1
        self._on_progress(len(chunk), counts.failed.total() - failed)
        return _hashes([*kept, *(entry.key for entry in entries)])

    def _compared(
        self, source: str, one: SourceRow, state: dict[str, Any] | None
    ) -> _Pending | RowFailure | None:
        """Returns what has to be done for a row; `None` if the store has it."""
        row = one.row
        if row.failure is not None:
            return row.failure
        if state is not None and state[SOURCE] != source:
            return RowFailure(
                "KEY_TAKEN",
                f"the store has key {row.key!r} from {state[SOURCE]}; give this source another --key-prefix",
            )
        known = "" if state is None else str(state[VERSION])
        columns = _columns_digest(row)
        if isinstance(row.image, Path):
            try:
                return self._of_file(row, row.image, columns, known)
            except OSError as error:
                return RowFailure("ROW_UNREADABLE", f"{row.image}: {error.strerror or error}")
        content = row.image if row.image is not None else (row.text or "").encode(errors="surrogatepass")
        if one.embedding is not None:
            content = one.embedding.tobytes()
        version = f"{columns}::{_digest(content)}"
        return None if version == known else _Pending(row, version, one.embedding, row.image)

    def _of_file(self, row: Row, file: Path, columns: str, known: str) -> _Pending | RowFailure | None:
        status = file.stat()  # before reading: a file that changes meanwhile differs next time
        stamp = f"{columns}:{status.st_size}-{status.st_mtime_ns}:"
        if known.startswith(stamp):
            return None
        if status.st_size > self._max_image_bytes:
            return RowFailure(
                "IMAGE_TOO_LARGE",
                f"the file has {status.st_size} bytes, limit {self._max_image_bytes}; send a smaller one",
            )
        content = file.read_bytes()
        digest = _digest(content)
        if known.startswith(f"{columns}:") and known.endswith(f":{digest}"):
            return None  # touched or copied, and still the same
        return _Pending(row, stamp + digest, None, content)

    def _entries(self, pending: dict[str, _Pending], source: str, counts: Counts) -> Iterator[Entry]:
        items: list[Item] = []
        for key, one in pending.items():
            if one.embedding is not None:
                yield one.entry(source, one.embedding)
            elif one.image is not None:
                items.append(ImageItem(one.image, id=key))
            else:
                items.append(TextItem(one.row.text or "", truncate=self._truncate, id=key))
        if not items:
            return
        for result in self._embed(items):
            if result.error is None:
                yield pending[result.id].entry(source, result.embedding)
            else:
                self._fail(result.id, _failure_of(result.error), counts)

    def _check_model(self) -> None:
        fingerprint = self._fingerprint()
        if fingerprint != self._store.fingerprint:
            raise OtherModelError(
                f"the server changed its model while indexing, to fingerprint {fingerprint}; the store has "
                f"{self._store.fingerprint}; run the command again with a server of that model"
            )

    def _delete_others(self, source: str, seen: NDArray[np.uint64]) -> int:
        seen.sort()
        removed = 0
        missing = (
            key for key, values in self._store.values([SOURCE]) if values[SOURCE] == source and _is_new(key, seen)
        )
        for keys in _batches(list(missing), _ROWS_AT_A_TIME):
            self._store.delete(keys)
            removed += len(keys)
        return removed

    def _fail(self, key: str, failure: RowFailure, counts: Counts) -> None:
        counts.failed[failure.reason] += 1
        self._on_failure(Failure(key, failure))


@dataclass(frozen=True, slots=True)
class _Pending:
    """A row to put, with what it is embedded from."""

    row: Row
    version: str
    embedding: NDArray[np.float32] | None
    image: bytes | Path | None

    def entry(self, source: str, embedding: NDArray[Any]) -> Entry:
        columns = {**self.row.columns, SOURCE: source, VERSION: self.version}
        return Entry(self.row.key, np.asarray(embedding, np.float32), columns)


def _twice(key: str) -> RowFailure:
    return RowFailure("KEY_TWICE", f"the source has key {key!r} twice; only its first row is in the store")


def _failure_of(error: AlignserveError) -> RowFailure:
    return RowFailure(error.reason or type(error).__name__, error.message)


def _columns_digest(row: Row) -> str:
    columns = json.dumps(dict(row.columns), sort_keys=True, default=str, ensure_ascii=True)
    return blake2b(columns.encode(), digest_size=8).hexdigest()


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Returns 8 bytes for each key: of millions of rows, the keys themselves would fill the memory."""
    digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.uint64)


def _is_new(key: str, seen: NDArray[np.uint64]) -> bool:
    (wanted,) = _hashes([key])
    place = int(np.searchsorted(seen, wanted))
    return place == len(seen) or seen[place] != wanted


def _batches(keys: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
