"""Runs `index`: opens the sources, the store and the server, and says what became of every row."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from alignserve._cli import output
from alignserve._cli.connection import connected
from alignserve._cli.job_progress import JobProgress
from alignserve._cli.job_sources import complain_of_skipped, source_options
from alignserve._client import Client
from alignserve._results import ModelInfo
from alignserve.datasets.source import SourceError
from alignserve.search import NoStoreError, Store, create_store, open_store
from alignserve.search.finding import FoundSources, find_sources
from alignserve.search.indexing import Counts, Failure, Indexer
from alignserve.search.sources import Source
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
        model = _Model.of(args, found, client)
        # all of them first: a source that is refused leaves no store
        sources = list(
            found.open(
                source_options(args, model.info),
                column=args.vector_column,
                dimension=model.dimension,
                key_prefix=args.key_prefix,
            )
        )
        store = model.store(args.store)
        stack.callback(store.close)
        account = _Account(args, stack)
        indexer = Indexer(
            store,
            lambda items: client.stream(items, window=args.window) if client else (),
            model.current_fingerprint,
            max_image_bytes=model.info.max_image_bytes if model.info else 0,
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


class _Model:
    """The model of the rows to index.

    Attributes:
        info: Of the server; `None` if all vectors exist.
        dimension: Of its embeddings.
    """

    def __init__(self, fingerprint: str, name: str, dimension: int, client: Client | None) -> None:
        self.info: ModelInfo | None = None
        self._fingerprint = fingerprint
        self._name = name
        self.dimension = dimension
        self._client = client

    @classmethod
    def of(cls, args: argparse.Namespace, found: FoundSources, client: Client | None) -> _Model:
        """Asks the server, or reads what the vectors say of their model.

        Raises:
            ValueError: They do not say it, or are of different models.
        """
        infos = found.models(args.vector_column)
        if args.fingerprint:
            infos = [(stated or args.fingerprint, name, dimension) for stated, name, dimension in infos]
        info = client.model_info() if client is not None else None
        if info is not None:
            infos.append((info.fingerprint, info.model_id, info.embedding_dimension))
        if not all(fingerprint for fingerprint, *_ in infos):
            raise ValueError(
                "the vectors do not say which model made them; give its fingerprint with --fingerprint, as "
                "alignserve info prints it"
            )
        if len({(fingerprint, dimension) for fingerprint, _, dimension in infos}) > 1:
            fingerprints = ", ".join(sorted({fingerprint for fingerprint, *_ in infos}))
            raise ValueError(
                f"the sources are of different models ({fingerprints}); index them into several stores"
            )
        model = cls(*infos[-1], client)
        model.info = info
        return model

    def store(self, place: str) -> Store:
        """Opens the store for writing, or creates it."""
        try:
            return open_store(place, fingerprint=self._fingerprint, for_writing=True)
        except NoStoreError:
            return create_store(
                place,
                fingerprint=self._fingerprint,
                model=self._name,
                embedding_dimension=self.dimension,
            )

    def current_fingerprint(self) -> str:
        """Returns the fingerprint of the server's model now."""
        return self._client.model_info().fingerprint if self._client is not None else self._fingerprint


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
