"""Runs `index`: opens the sources, the store and the server, and says what became of every row."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from alignserve._cli import output
from alignserve._cli.connection import connected
from alignserve._cli.job_progress import JobProgress
from alignserve._cli.job_sources import complain_of_skipped, source_options
from alignserve.datasets.source import SourceError
from alignserve.search import NoStoreError, OtherModelError, Store, create_store, open_store
from alignserve.search.finding import find_sources
from alignserve.search.indexing import Counts, Failure, Indexer
from alignserve.search.sources import Source
from alignserve.search.space import Space, common_space, space_of_store
from alignserve.search.vectors import VectorsError

_OK, _SOME_FAILED = 0, 1
_MAX_NAMED = 20  # failures on the terminal; --failures has all


def run(args: argparse.Namespace) -> int:
    """Brings the store up to date, and returns the exit code."""
    try:
        return _run(args)
    except (SourceError, VectorsError) as error:
        raise ValueError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    found = find_sources(args.source, args.vector_column)
    with ExitStack() as stack:
        client = stack.enter_context(connected(args)) if found.to_embed else None
        info = client.model_info() if client is not None else None
        spaces = found.spaces(args.vector_column, args.fingerprint or "")
        served = [Space(info.fingerprint, info.model_id, info.embedding_dimension)] if info else []
        target = _Target.of(args.store, [*spaces, *served])
        stack.callback(target.close)
        # all of them first: a source that is refused leaves no store
        sources = list(
            found.open(
                source_options(args, info),
                spaces,
                target.space,
                column=args.vector_column,
                key_prefix=args.key_prefix,
            )
        )
        store = target.opened()
        account = _Account(args, stack)
        indexer = Indexer(
            store,
            lambda items: client.stream(items, window=args.window) if client else (),
            lambda: client.model_info().fingerprint if client else target.space.model_fingerprint,
            max_image_bytes=info.max_image_bytes if info else 0,
            truncate=args.truncate,
            on_failure=account.fail,
            on_rows=account.rows,
        )
        try:
            for source in sources:
                account.add(source, indexer.index(source, keeps_missing=args.keep_missing))
        finally:
            account.progress.finish()
        store.optimize()
        return account.report(store.count())


class _Target:
    """The store to write, which is not created before all sources have been opened.

    Attributes:
        space: Of its vectors.
    """

    def __init__(self, place: str, space: Space, store: Store | None) -> None:
        self.space = space
        self._place = place
        self._store = store

    @classmethod
    def of(cls, place: str, spaces: Sequence[Space]) -> _Target:
        """Opens the store that is there, or chooses the space of a new one.

        Raises:
            OtherModelError: The store is of another model than a source.
            ValueError: The vectors do not say which model made them, or are of different ones.
        """
        if not all(space.fingerprint for space in spaces):
            raise ValueError(
                "the vectors do not say which model made them; give its fingerprint with --fingerprint, as "
                "alignserve info prints it"
            )
        try:
            store = open_store(place, for_writing=True)
        except NoStoreError:
            return cls(place, common_space(spaces), None)
        found = cls(place, space_of_store(store), store)
        try:
            for space in spaces:
                found.space.check_takes(space, f"the store {place}")
        except OtherModelError:
            found.close()
            raise
        return found

    def opened(self) -> Store:
        """Returns the store, opened for writing."""
        if self._store is None:
            self._store = create_store(
                self._place,
                fingerprint=self.space.fingerprint,
                model=self.space.model,
                embedding_dimension=self.space.dimension,
                compaction=self.space.compaction,
            )
        return self._store

    def close(self) -> None:
        """Closes the store."""
        if self._store is not None:
            self._store.close()


class _Account:
    """Counts the rows, names the failures, and prints both."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        self.progress = JobProgress(sys.stderr, files=0)
        self._place = args.store
        self._prints_json = args.json
        self._counts = Counts()
        self._problems: list[str] = []
        self._failures = stack.enter_context(output.open_text(args.failures)) if args.failures else None
        if self._failures is not None:
            output.empty(self._failures)
        self._named = 0

    def rows(self, done: int, failed: int) -> None:
        """Counts rows for the progress."""
        for number in range(done):
            self.progress.row(failed=number < failed)

    def fail(self, failure: Failure) -> None:
        """Names a row that failed."""
        if self._failures is not None:
            line = {"key": failure.key, "reason": failure.failure.reason, "message": failure.failure.message}
            self._failures.write(json.dumps(line) + "\n")
        elif self._named < _MAX_NAMED:
            output.complain(f"{failure.key}: {failure.failure.reason}: {failure.failure.message}")
        elif self._named == _MAX_NAMED:
            output.complain("more rows failed; --failures FILE names all")
        self._named += 1

    def add(self, source: Source, counts: Counts) -> None:
        """Adds what happened to a source."""
        self._counts.add(counts)
        self._problems += source.problems
        for problem in source.problems:
            output.complain(
                f"cannot read {problem}" + ("; nothing was removed from the store" if source.deletes else "")
            )
        complain_of_skipped(source.skipped)

    def report(self, rows: int) -> int:
        """Prints the account, and returns the exit code."""
        counts = self._counts
        if self._prints_json:
            print(json.dumps({**counts.as_data(), "problems": self._problems, "store_rows": rows}))
        else:
            print(f"{counts.summary()}; {self._place} has {rows} rows")
        return _SOME_FAILED if counts.failed or self._problems else _OK
