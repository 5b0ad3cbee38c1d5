"""Answers of a store to composed queries, embedded by a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from alignserve import Client, InvalidArgumentError, UnavailableError
from alignserve.search.errors import OtherModelError
from alignserve.search.exact import ExactStore
from alignserve.search.filters import FilterError
from alignserve.search.queries import BadQuery, QueryError, SearchQuery, SearchTerm
from alignserve.search.searching import Searcher
from alignserve.search.store import Entry
from alignserve.testing import FakeServer


@pytest.fixture
def store(server: FakeServer) -> ExactStore:
    """Rows with the embeddings of the texts that are their keys."""
    made = ExactStore(fingerprint="fake-8", embedding_dimension=8)
    made.put(
        Entry(text, server.embedding_of(text), {"number": number})
        for number, text in enumerate(["cat", "dog", "cup", "bag"])
    )
    return made


@pytest.fixture
def searcher(store: ExactStore, client: Client) -> Searcher:
    return Searcher(store, client)


def query(*terms: SearchTerm, **more: object) -> SearchQuery:
    return SearchQuery(terms=terms, **more)  # type: ignore[arg-type]  # the tests give the right ones


def test_a_text_finds_its_row(searcher: Searcher) -> None:
    """With a similarity of 1."""
    hits = searcher.search(query(SearchTerm(text="cup"), top_k=2))

    assert [hit.key for hit in hits][:1] == ["cup"]
    assert hits[0].similarity == pytest.approx(1, abs=1e-6)
    assert len(hits) == 2


def test_terms_are_added_with_their_weights(
    server: FakeServer, store: ExactStore, searcher: Searcher
) -> None:
    """Images, texts and rows of the store alike; what is subtracted makes rows less similar."""
    terms = [
        SearchTerm(image=b"photo"),
        SearchTerm(text="cup", weight=0.5),
        SearchTerm(like="cat", weight=-2),
    ]
    wanted = server.embedding_of(b"photo") + 0.5 * server.embedding_of("cup") - 2 * server.embedding_of("cat")
    wanted /= np.linalg.norm(wanted)

    hits = searcher.search(query(*terms))

    assert {hit.key: hit.similarity for hit in hits} == pytest.approx(
        {text: float(wanted @ server.embedding_of(text)) for text in ("cat", "dog", "cup", "bag")}, abs=1e-6
    )


def test_a_row_of_the_store_needs_no_server(store: ExactStore) -> None:
    """A text does."""
    searcher = Searcher(store)

    assert searcher.search(query(SearchTerm(like="bag"), top_k=1))[0].key == "bag"
    with pytest.raises(ValueError, match="need a client"):
        searcher.search(query(SearchTerm(text="bag")))


def test_a_store_of_another_model_is_refused(client: Client) -> None:
    """Before anything is embedded: the answers would look like answers."""
    store = ExactStore(fingerprint="other", embedding_dimension=8, model="theirs")

    with pytest.raises(OtherModelError, match=r"'theirs' with fingerprint other.* 'fake' with fake-8"):
        Searcher(store, client)


def test_a_filter_and_a_least_similarity_apply(searcher: Searcher) -> None:
    """Rows beyond either are left out."""
    everything = query(SearchTerm(text="cup"), where={"number": {"max": 1}})

    assert {hit.key for hit in searcher.search(everything)} == {"cat", "dog"}
    assert [hit.key for hit in searcher.search(query(SearchTerm(text="cup"), min_similarity=0.999))] == [
        "cup"
    ]


def test_each_query_has_an_answer_in_its_place(
    server: FakeServer, searcher: Searcher, tmp_path: Path
) -> None:
    """Those that fail do not affect the others, wherever they fail."""
    server.fail_input("refused", reason="TEXT_TOO_LONG")
    queries: list[SearchQuery | BadQuery] = [
        query(SearchTerm(like="cat"), id="row first"),
        query(SearchTerm(text="dog"), id="text"),
        BadQuery("bad", QueryError("it is not JSON")),
        query(SearchTerm(text="refused"), id="refused"),
        query(SearchTerm(image=tmp_path / "missing.jpg"), id="no file"),
        query(SearchTerm(text="cup"), where={"nothing": 1}, id="filter"),
        query(SearchTerm(like="nobody"), id="no row"),
        query(SearchTerm(text="a"), SearchTerm(text="a", weight=-1), id="cancels out"),
        query(SearchTerm(text="bag"), id="last text"),
        query(SearchTerm(like="cup"), id="row last"),
    ]

    answers = list(searcher.answers(queries))

    assert [answer.query.id for answer in answers] == [one.id for one in queries]
    found = {answer.query.id: answer.hits[0].key for answer in answers if answer.error is None}
    assert found == {"row first": "cat", "text": "dog", "last text": "bag", "row last": "cup"}
    kinds = {answer.query.id: type(answer.error) for answer in answers if answer.error is not None}
    assert kinds == {
        "bad": QueryError,
        "refused": InvalidArgumentError,
        "no file": InvalidArgumentError,
        "filter": FilterError,
        "no row": QueryError,
        "cancels out": InvalidArgumentError,
    }


def test_queries_are_read_as_they_are_answered(searcher: Searcher) -> None:
    """So a file of queries may be of any size, or a pipe."""
    read = 0

    def endless() -> Iterator[SearchQuery]:
        nonlocal read
        while True:
            read += 1
            yield query(SearchTerm(text="cat"))

    answers = searcher.answers(endless())
    assert next(answers).hits[0].key == "cat"
    answers.close()  # type: ignore[attr-defined]  # it is a generator

    assert read <= 100


def test_a_server_that_is_gone_ends_the_search(server: FakeServer, searcher: Searcher) -> None:
    """That is not the fault of any query."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", times=1000)

    with pytest.raises(UnavailableError):
        list(searcher.answers([query(SearchTerm(text="cat"))]))
