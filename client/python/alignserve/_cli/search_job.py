"""Answers the command `search`: as a table, as JSON, or as a contact sheet."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from alignserve._cli import hits_table, output
from alignserve._cli.connection import connected
from alignserve._cli.inputs import STDIN, check_stdin, image_of
from alignserve._cli.terms import GivenTerm
from alignserve._client import Client
from alignserve.errors import AlignserveError
from alignserve.search import NoStoreError, open_store
from alignserve.search.filters import FilterError, WrittenCondition, check_filter, merged, read_conditions
from alignserve.search.pictures import SheetPictures
from alignserve.search.queries import QueryDefaults, SearchQuery, SearchTerm, read_queries
from alignserve.search.searching import Answer, Searcher
from alignserve.search.sheet import Card, Sheet, Term, html
from alignserve.search.store import Hit, Store
from alignserve.search.unindexed import read_vectors

_OK, _SOME_FAILED = 0, 1  # as in alignserve.cli


def run(args: argparse.Namespace) -> int:
    """Prints what a store has for one query, or for each query of a file."""
    _check(args)
    store = _opened(args.store)
    try:
        where = _where(args, store)
        if args.queries_file is None:
            return _run_one(args, store, where)
        return _run_file(args, store, where)
    finally:
        store.close()


def _opened(place: str) -> Store:
    """Opens a store, or reads vectors that have none into memory."""
    try:
        return open_store(place)
    except NoStoreError:
        found = read_vectors(place)
        if found is None:
            raise
    store, missing = found
    if missing:
        output.complain(f"rows of {place} without a vector, which are not searched: {missing}")
    return store


def _check(args: argparse.Namespace) -> None:
    if not args.terms and args.queries_file is None:
        args.usage_error("search needs --text, --image or --like, or --queries-file")
    if args.terms and args.queries_file is not None:
        args.usage_error("--queries-file has the queries; leave out --text, --image, --like and --minus")
    if args.html and args.queries_file is not None:
        args.usage_error("--html shows one query; leave out --queries-file")
    if (args.images or args.page) and not args.html:
        args.usage_error("--images and --page are for --html FILE")
    if args.page and not args.page.startswith(("http://", "https://")):
        args.usage_error(f"--page: {args.page!r} is not a URL such as http://127.0.0.1:8080")
    check_stdin(args, [term.image for term in args.terms if term.image is not None])


def _where(args: argparse.Namespace, store: Store) -> dict[str, Any]:
    columns = store.columns()
    where = read_conditions([WrittenCondition(*given) for given in args.conditions], columns)
    if args.where_json is None:
        return where
    try:
        given = json.loads(args.where_json)
    except ValueError as error:
        raise FilterError(f"--where-json is not JSON: {error}") from None
    return merged(where, check_filter(given, columns))


def _run_one(args: argparse.Namespace, store: Store, where: Mapping[str, Any]) -> int:
    query = SearchQuery(
        terms=[_term(given) for given in args.terms],
        where=where,
        top_k=args.top_k,
        min_similarity=args.min_similarity,
    )
    # The file is opened first, and emptied only once there is an answer.
    with output.open_text(args.html) if args.html else nullcontext() as sheet:
        with _client(args, is_needed=bool(query.for_server())) as client:
            hits = Searcher(store, client, truncate=args.truncate).search(query)
        if args.json:
            _write({"model": store.fingerprint, "hits": [_hit_data(hit) for hit in hits]})
        elif hits:
            sys.stdout.write(hits_table.table(hits, hits_table.terminal_width()) + "\n")
        if not hits:
            output.complain(_why_nothing(store, query))
        if sheet:
            output.empty(sheet)
            sheet.write(_sheet(args, query, hits, store))
            output.complain(f"wrote {args.html}")
    return _OK


def _run_file(args: argparse.Namespace, store: Store, where: Mapping[str, Any]) -> int:
    defaults = QueryDefaults(where=where, top_k=args.top_k, min_similarity=args.min_similarity)
    failed = 0
    with (
        nullcontext(sys.stdin)
        if args.queries_file == "-"
        else Path(args.queries_file).open(encoding="utf-8") as lines,
        connected(args) as client,
    ):
        for answer in Searcher(store, client, truncate=args.truncate).answers(read_queries(lines, defaults)):
            _write(_answer_data(answer))
            failed += answer.error is not None
    if failed:
        output.complain(f"{failed} queries failed; their lines say why")
    return _SOME_FAILED if failed else _OK


def _term(given: GivenTerm) -> SearchTerm:
    return SearchTerm(
        image=None if given.image is None else image_of(given.image),
        text=given.text,
        like=given.like,
        weight=given.weight,
    )


@contextmanager
def _client(args: argparse.Namespace, *, is_needed: bool) -> Iterator[Client | None]:
    if not is_needed:
        yield None
        return
    with connected(args) as client:
        yield client


def _why_nothing(store: Store, query: SearchQuery) -> str:
    if not store.count():
        return "the store is empty; alignserve index fills it"
    if query.min_similarity is None:
        return "no row meets the filter"
    return f"no row that meets the filter has a similarity of at least {query.min_similarity:g}"


def _answer_data(answer: Answer) -> dict[str, Any]:
    if answer.error is None:
        return {"id": answer.query.id, "hits": [_hit_data(hit) for hit in answer.hits]}
    return {"id": answer.query.id, "error": _error_data(answer.error)}


def _error_data(error: AlignserveError | ValueError) -> dict[str, str]:
    if isinstance(error, AlignserveError):
        return {"code": error.code.name, "reason": error.reason, "message": error.message}
    reason = "FILTER_INVALID" if isinstance(error, FilterError) else "QUERY_INVALID"
    return {"code": "INVALID_ARGUMENT", "reason": reason, "message": str(error)}


def _hit_data(hit: Hit) -> dict[str, Any]:
    columns = {name: _json_value(value) for name, value in hit.columns.items()}
    return {"key": hit.key, "similarity": round(hit.similarity, 6), "columns": columns}


def _json_value(value: Any) -> Any:
    """Returns a value as JSON can have it: `null` for NaN, and a text for infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _write(data: object) -> None:
    sys.stdout.write(output.json_text(data, sys.stdout) + "\n")


def _sheet(args: argparse.Namespace, query: SearchQuery, hits: Sequence[Hit], store: Store) -> str:
    facts = {"Store": f"{args.store}, {store.count():,} rows, model {store.model}"}
    if query.where:
        facts["Filter"] = json.dumps(query.where, ensure_ascii=False)
    if query.min_similarity is not None:
        facts["Minimum similarity"] = f"{query.min_similarity:g}"
    with SheetPictures(args.images) as pictures:
        terms = [
            _shown(given, term, store, pictures) for given, term in zip(args.terms, query.terms, strict=True)
        ]
        cards = [
            Card(hit.key, hit.similarity, hit.columns, *pictures.of_row(hit.key, hit.columns)) for hit in hits
        ]
    return html(Sheet(terms, cards, facts, _page_link(args.page, query)))


def _page_link(page: str | None, query: SearchQuery) -> str:
    """Returns the address of the server's page with the words of the query, or an empty text."""
    if page is None:
        return ""
    words = " ".join(term.text for term in query.terms if term.text is not None and term.weight > 0)
    return f"{page.rstrip('/')}/#{urlencode({'search': words})}" if words else page


def _shown(given: GivenTerm, term: SearchTerm, store: Store, pictures: SheetPictures) -> Term:
    if term.text is not None:
        return Term(f"“{term.text}”", term.weight)
    if term.like is not None:
        (entry,) = store.get([term.like])
        return Term(term.like, term.weight, pictures.of_row(entry.key, entry.columns)[0])
    name = "standard input" if given.image == STDIN else str(given.image)
    return Term(name, term.weight, None if term.image is None else pictures.of_image(term.image))
