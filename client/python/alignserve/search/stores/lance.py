"""Stores in LanceDB: a folder, a folder on an object store, or a database of a LanceDB server.

Each put and delete is a new version of the table that appears as a whole: readers see the version before or
after it, and a writer that is killed leaves the one before. On top of that a folder has one writer at a time,
since an indexing run compares rows before it puts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alignserve.datasets import durable
from alignserve.datasets.lock import FolderLock
from alignserve.datasets.sources.keys import is_unicode
from alignserve.search.compact import Compaction
from alignserve.search.errors import (
    NoStoreError,
    RowsRefusedError,
    StoreBusyError,
    StoreError,
    StoreExistsError,
)
from alignserve.search.filters import check_filter
from alignserve.search.identity import Identity
from alignserve.search.store import BOOKKEEPING, ColumnKind, Entry, Hit
from alignserve.search.stores import columns, sql, tuning
from alignserve.search.stores.columns import EMBEDDING, KEY
from alignserve.search.stores.elements import Elements
from alignserve.search.stores.engine_errors import engine_errors, reason
from alignserve.search.stores.quiet_lancedb import connect

ENGINE = "lancedb"

_TABLE = "vectors"
_COMPACTION_TABLE, _CONTENT = "compaction", "content"  # a table, so that stores at URLs have it too
_METADATA = b"alignserve.store"
_IDENTITY_FILE, _LOCK_FILE = "store.json", ".lock"
_OWN = frozenset(
    {_LOCK_FILE, f"{_TABLE}.lance", f"{_COMPACTION_TABLE}.lance"}
)  # what an unfinished creation leaves

_ROWS_AT_A_TIME = 8192  # in one version of the table, and in one batch of a scan
_KEYS_AT_A_TIME = 2048  # in one condition
_KEPT_VERSIONS = timedelta(hours=1)  # for readers that are still in an old one

Table: TypeAlias = Any  # lancedb's classes of local and remote tables have a private common base


def create_store(
    place: str,
    *,
    fingerprint: str,
    model: str,
    embedding_dimension: int,
    compaction: Compaction | None = None,
) -> LanceStore:
    """Creates an empty store; see `alignserve.search.create_store`."""
    digest = compaction.digest() if compaction else ""
    identity = Identity(ENGINE, fingerprint, model, embedding_dimension, digest)
    folder = _folder(place)
    lock = None
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise StoreExistsError(f"{place} is a file; choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        _check_free(place, folder)  # leaves no lock in a folder of photos
        lock = _locked(folder)
    try:
        _check_free(place, folder)
        schema = _schema(identity, Elements.of(embedding_dimension, compaction))
        # In a folder, an unfinished creation is done again; on an object store, another run may be faster.
        mode = "create" if folder is None else "overwrite"
        with engine_errors(place):
            database = _connected(place)
            if compaction is not None:
                content = pa.table({_CONTENT: pa.array([compaction.to_bytes()], pa.binary())})
                database.create_table(_COMPACTION_TABLE, content, mode="overwrite")
            table = database.create_table(_TABLE, schema=schema, mode=mode)
        if folder is not None:  # last: a folder without it is not a store
            durable.write_json(folder / _IDENTITY_FILE, identity.as_json())
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return LanceStore(place, identity, table, lock, compaction, is_writable=True)


def open_store(place: str, *, fingerprint: str | None = None, for_writing: bool = False) -> LanceStore:
    """Opens a store; see `alignserve.search.open_store`."""
    folder = _folder(place)
    if folder is not None and not (folder / _IDENTITY_FILE).is_file():
        raise _no_store(place)
    try:
        table = _opened(place)
    except NoStoreError as error:
        if folder is None:
            raise
        raise StoreError(
            f"the store {place} is damaged: its rows are gone; "
            "restore it, or delete the folder and index again"
        ) from error
    with engine_errors(place):
        metadata = table.schema.metadata or {}
    identity = Identity.of(metadata.get(_METADATA), place)
    if folder is not None and Identity.of((folder / _IDENTITY_FILE).read_bytes(), place) != identity:
        raise StoreError(
            f"the files of the store {place} are of different stores; restore it, or index again"
        )
    if fingerprint is not None:
        identity.check_model(fingerprint, place)
    compaction = _compaction(place, identity) if identity.compaction else None
    lock = _locked(folder) if for_writing and folder is not None else None
    return LanceStore(place, identity, table, lock, compaction, is_writable=for_writing)


class LanceStore:
    """A store in LanceDB; see `alignserve.search.store.Store`."""

    def __init__(
        self,
        place: str,
        identity: Identity,
        table: Table,
        lock: FolderLock | None,
        compaction: Compaction | None,
        *,
        is_writable: bool,
    ) -> None:
        self.fingerprint = identity.fingerprint
        self.model = identity.model
        self.embedding_dimension = identity.embedding_dimension
        self.compaction = compaction
        self._elements = Elements.of(identity.embedding_dimension, compaction)
        self._place = place
        self._table = table
        self._lock = lock
        self._is_writable = is_writable

    def count(self) -> int:
        """Returns the number of rows."""
        return self._count(None)

    def put(self, entries: Iterable[Entry]) -> None:
        """Adds rows; rows with the same keys are replaced. Every few thousand rows appear at once."""
        self._check_writable()
        rows = iter(entries)
        while chunk := list(islice(rows, _ROWS_AT_A_TIME)):
            self._put_chunk(list({entry.key: entry for entry in chunk}.values()))

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes rows; keys that are not there do no harm."""
        self._check_writable()
        for some in _batches(keys, _KEYS_AT_A_TIME):
            with engine_errors(self._place):
                self._table.delete(sql.is_one_of(KEY, some))

    def get(self, keys: Sequence[str]) -> list[Entry]:
        """Returns the rows with these keys, in this order; keys that are not there are left out."""
        found: dict[str, Entry] = {}
        for some in _batches(keys, _KEYS_AT_A_TIME):
            for entry in self._scan(sql.is_one_of(KEY, some)):
                found[entry.key] = Entry(entry.key, entry.embedding, _visible(entry.columns))
        return [found[key] for key in keys if key in found]

    def columns(self) -> Mapping[str, ColumnKind]:
        """Returns the columns that `where` can name."""
        kinds = {name: columns.kind_of(type_) for name, type_ in self._types().items()}
        return {name: kind for name, kind in kinds.items() if kind and not name.startswith(BOOKKEEPING)}

    def values(
        self, columns: Sequence[str], keys: Sequence[str] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the keys of rows with some of their columns."""
        conditions = (
            [None] if keys is None else [sql.is_one_of(KEY, some) for some in _batches(keys, _KEYS_AT_A_TIME)]
        )
        types = self._types()
        names = {name: _physical(name) for name in columns if name in types}
        for condition in conditions:
            for batch in self._batches_of([KEY, *names.values()], condition):
                found = {name: batch.column(physical).to_pylist() for name, physical in names.items()}
                for number, key in enumerate(batch.column(KEY).to_pylist()):
                    yield key, {name: found[name][number] if name in found else None for name in columns}

    def entries(self) -> Iterator[Entry]:
        """Yields all rows, as they were when it began."""
        return self._scan(None)

    def optimize(self) -> None:
        """Compacts files, removes old versions, and builds or extends the indexes if the table is large."""
        self._check_writable()
        with engine_errors(self._place):
            tuning.optimize(self._table, self.count(), _KEPT_VERSIONS, is_bits=self._elements.is_bits)

    def search(
        self, query: NDArray[np.float32], top_k: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Returns the rows with the highest cosine similarity, best first; `where` selects rows before that.

        Raises:
            FilterError: The filter does not fit the columns.
            ValueError: The query has the wrong length, no direction or NaN, or `top_k` is below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; give at least 1")
        unit = self._unit(query)
        types = self._types()
        checked = check_filter(where or {}, self.columns())
        condition = self._condition(checked, types) if checked else None
        candidates = self._count(condition)
        if not candidates:
            return []
        kept = [name for name in types if not name.startswith(BOOKKEEPING)]
        names = [KEY, *map(_physical, kept), "_distance"]
        wanted = min(top_k, candidates)
        with engine_errors(self._place):
            if self._elements.is_bits:
                bits = self._elements.kept(unit[None, :])[0]
                search = tuning.searched_bits(self._table, bits, wanted, condition)
            else:
                search = tuning.searched(self._table, unit, wanted, condition, candidates)
            if self._elements.dtype == "float32":
                table = search.select(names).to_arrow()
                return _hits(table, kept, 1 - table.column("_distance").to_numpy())
            table = search.select([*names, EMBEDDING]).to_arrow()
        # The engine rounds the query as its vectors are, and their lengths are 1 only up to that.
        similarities = self._elements.units(table.column(EMBEDDING)) @ unit
        best = np.argsort(-similarities, kind="stable")[:wanted]
        return _hits(table.take(pa.array(best)), kept, similarities[best])

    def close(self) -> None:
        """Closes the store, and lets others write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._is_writable = False

    def _put_chunk(self, entries: Sequence[Entry]) -> None:
        known = self._types()
        units, new = self._checked(entries, known)
        if new:
            with engine_errors(self._place):
                self._table.add_columns(
                    pa.schema([pa.field(_physical(name), type_) for name, type_ in new.items()])
                )
        types = {**known, **new}
        arrays = {
            KEY: pa.array([entry.key for entry in entries], pa.string()),
            EMBEDDING: self._elements.column(units),
            **{
                _physical(name): columns.array((entry.columns.get(name) for entry in entries), type_)
                for name, type_ in types.items()
            },
        }
        with engine_errors(self._place):
            rows = pa.table(arrays, schema=pa.schema([self._table.schema.field(name) for name in arrays]))
            merge = self._table.merge_insert(KEY).when_matched_update_all().when_not_matched_insert_all()
            merge.execute(rows)

    def _checked(
        self, entries: Sequence[Entry], known: Mapping[str, pa.DataType]
    ) -> tuple[NDArray[np.float32], dict[str, pa.DataType]]:
        """Returns vectors of length 1, (n, dim), and the types of new columns."""
        units, new, refused = [], dict[str, pa.DataType](), dict[str, str]()
        for entry in entries:
            try:
                columns.check_key(entry.key)
                units.append(self._unit(entry.embedding))
                columns.learn_types(entry, known, new)
            except ValueError as error:
                refused[entry.key] = str(error)
        if refused:
            raise RowsRefusedError(refused)
        return np.stack(units), new

    def _unit(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        exact = np.asarray(vector, np.float64)
        if exact.shape != (self.embedding_dimension,):
            raise ValueError(f"the vector has shape {exact.shape}, not ({self.embedding_dimension},)")
        length = float(np.linalg.norm(exact))
        if not np.isfinite(length) or length == 0:
            raise ValueError("the vector has NaN or infinity in it, or only zeros")
        return np.asarray(exact / length, np.float32)

    def _types(self) -> dict[str, pa.DataType]:
        """Returns the types of the columns of metadata."""
        with engine_errors(self._place):
            schema = self._table.schema
        return {
            columns.logical(field.name): field.type for field in schema if field.name not in (KEY, EMBEDDING)
        }

    def _count(self, condition: str | None) -> int:
        with engine_errors(self._place):
            return int(self._table.count_rows(condition))

    def _condition(self, where: Mapping[str, Any], types: Mapping[str, pa.DataType]) -> str:
        whole = {name for name, type_ in types.items() if type_ == pa.int64()}
        return sql.condition(where, {name: _physical(name) for name in types}, whole)

    def _scan(self, condition: str | None) -> Iterator[Entry]:
        names = list(self._types())
        for batch in self._batches_of([KEY, EMBEDDING, *map(_physical, names)], condition):
            keys = batch.column(KEY).to_pylist()
            vectors = self._elements.units(batch.column(EMBEDDING))
            values = {name: batch.column(_physical(name)).to_pylist() for name in names}
            for number, key in enumerate(keys):
                row = {name: value for name in names if (value := values[name][number]) is not None}
                yield Entry(key, vectors[number], row)

    def _batches_of(self, names: Sequence[str], condition: str | None) -> Iterator[pa.RecordBatch]:
        with engine_errors(self._place):
            query = self._table.search().select(list(names)).limit(None)
            if condition is not None:
                query = query.where(condition)
            yield from query.to_batches(_ROWS_AT_A_TIME)

    def _check_writable(self) -> None:
        if not self._is_writable:
            raise StoreError(f"the store {self._place} was opened for reading; open it with for_writing=True")


def _hits(table: pa.Table, names: Sequence[str], cosines: NDArray[np.float32]) -> list[Hit]:
    keys = table.column(KEY).to_pylist()
    similarities = np.clip(cosines, -1, 1).tolist()
    values = {name: table.column(_physical(name)).to_pylist() for name in names}
    return [
        Hit(
            key,
            similarities[row],
            {name: values[name][row] for name in names if values[name][row] is not None},
        )
        for row, key in enumerate(keys)
    ]


def _visible(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith(BOOKKEEPING)}


def _physical(name: str) -> str:
    return columns.physical(name)


def _schema(identity: Identity, elements: Elements) -> pa.Schema:
    return pa.schema(
        [
            pa.field(KEY, pa.string(), nullable=False),
            pa.field(EMBEDDING, elements.type, nullable=False),
        ],
        metadata={_METADATA: json.dumps(identity.as_json())},
    )


def _folder(place: str) -> Path | None:
    """Returns the folder of a store on this machine; `None` for a URL."""
    return None if "://" in place else Path(place)


def _connected(place: str) -> Any:
    # Each query looks for a newer version first: long-lived readers follow the writer.
    return connect(place, read_consistency_interval=timedelta(0))


def _opened(place: str) -> Table:
    """Returns the table of a store.

    Raises:
        NoStoreError: The engine answers that there is none. A place that does not answer may well have one.
        StoreError: It cannot be opened.
    """
    with engine_errors(place):
        database = _connected(place)
        try:
            return database.open_table(_TABLE)
        except (ValueError, FileNotFoundError):
            if _has_table(database):
                raise
    raise _no_store(place)


def _has_table(database: Any) -> bool:
    token = None
    while True:
        page = database.list_tables(page_token=token)
        if _TABLE in page.tables:
            return True
        token = page.page_token
        if not token:
            return False


def _no_store(place: str) -> NoStoreError:
    return NoStoreError(f"there is no store at {place}; make one with alignserve index SOURCE --to {place}")


def _compaction(place: str, identity: Identity) -> Compaction:
    """Reads how the vectors of a store were made compact."""
    advice = "restore it, or index the folder of the compact vectors again"
    try:
        table = _connected(place).open_table(_COMPACTION_TABLE)
        (content,) = table.search().limit(1).to_arrow().column(_CONTENT).to_pylist()
        found = Compaction.from_bytes(content, "its compaction")
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"no query can be made compact like the vectors of the store {place}: {reason(error)}; {advice}"
        ) from error
    if found.digest() != identity.compaction or found.fingerprint != identity.fingerprint:
        raise StoreError(f"the store {place} has the compaction of other vectors; {advice}")
    return found


def _locked(folder: Path) -> FolderLock:
    try:
        return FolderLock(folder / _LOCK_FILE)
    except BlockingIOError as error:
        raise StoreBusyError(
            f"the store {folder} is being written by {error}; wait until it has finished (searches need not)"
        ) from None


def _check_free(place: str, folder: Path | None) -> None:
    if folder is None:
        with suppress(NoStoreError):
            _opened(place)
            raise StoreExistsError(f"there is a store at {place} already; open it, or choose another place")
        return
    if (folder / _IDENTITY_FILE).exists():
        raise StoreExistsError(f"there is a store at {place} already; open it, or choose another folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in _OWN)
    if others:
        raise StoreExistsError(
            f"the folder {place} has other files, such as {others[0]}; choose a new folder"
        )


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    possible = list(filter(is_unicode, keys))  # no row has another
    for start in range(0, len(possible), size):
        yield possible[start : start + size]
