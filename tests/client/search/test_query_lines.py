"""Queries: what a line of a file says, and the sum of a query's terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignserve.search.queries import (
    BadQuery,
    QueryDefaults,
    QueryError,
    SearchQuery,
    SearchTerm,
    composed,
    read_queries,
)


def read(*lines: str, **defaults: Any) -> list[SearchQuery | BadQuery]:
    return list(read_queries(lines, QueryDefaults(**defaults)))


def only(line: object) -> SearchQuery:
    (query,) = read(json.dumps(line))
    assert isinstance(query, SearchQuery), query
    return query


def test_a_line_has_terms_with_weights() -> None:
    """Images are paths, texts texts, and `like` the key of a row."""
    query = only(
        {"terms": [{"image": "bag.jpg"}, {"text": "red", "weight": 0.5}, {"like": "a", "weight": -2}]}
    )

    assert [(term.image, term.text, term.like, term.weight) for term in query.terms] == [
        (Path("bag.jpg"), None, None, 1.0),
        (None, "red", None, 0.5),
        (None, None, "a", -2.0),
    ]


def test_a_line_may_name_its_terms_directly() -> None:
    """Each has weight 1."""
    query = only({"image": "bag.jpg", "text": "red"})

    assert [(term.image, term.text, term.weight) for term in query.terms] == [
        (Path("bag.jpg"), None, 1.0),
        (None, "red", 1.0),
    ]


def test_a_line_overrides_the_defaults() -> None:
    """Filters are added to those of the command."""
    first, second = read(
        '{"text": "a"}\n',
        '{"id": "b", "text": "b", "where": {"width": 2}, "top_k": 1, "min_similarity": 0}\n',
        where={"license": "CC0"},
        top_k=7,
        min_similarity=0.2,
    )

    assert isinstance(first, SearchQuery)
    assert isinstance(second, SearchQuery)
    assert (first.id, first.where, first.top_k, first.min_similarity) == (1, {"license": "CC0"}, 7, 0.2)
    assert (second.id, second.top_k, second.min_similarity) == ("b", 1, 0.0)
    assert second.where == {"license": "CC0", "width": 2}


def test_blank_lines_are_no_queries_and_count_as_lines() -> None:
    """The id of a query without one is the number of its line."""
    assert [query.id for query in read("\n", '{"text": "a"}\n', "  \n", '{"text": "b"}')] == [2, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"text": NaN}', "NaN is not a number"),
        ("[1]", "not an object"),
        ('"a cat"', "not an object"),
        ("{}", "needs either terms"),
        ('{"text": "a", "terms": [{"text": "b"}]}', "needs either terms"),
        ('{"terms": []}', "at least one"),
        ('{"terms": ["a"]}', "a term is not an object"),
        ('{"terms": [{"text": "a", "image": "b"}]}', "give one of them"),
        ('{"terms": [{"text": "a", "wieght": 2}]}', "unknown field 'wieght'"),
        ('{"terms": [{"text": "a", "weight": "2"}]}', "is not a number"),
        ('{"terms": [{"text": "a", "weight": true}]}', "is not a number"),
        ('{"terms": [{"text": "a", "weight": 0}]}', "weight 0"),
        ('{"text": 7}', "text of a term is not text"),
        ('{"text": "a", "topk": 3}', "unknown field 'topk'"),
        ('{"text": "a", "top_k": 0}', "top_k 0"),
        ('{"text": "a", "top_k": true}', "top_k True"),
        ('{"text": "a", "where": []}', "where is not an object"),
        ('{"text": "a", "min_similarity": "0.5"}', "not a number"),
        ('{"text": "a", "min_similarity": 1e999}', "from -1 to 1"),
        ("[" * 100_000, "nested too deeply|not JSON"),
    ],
)
def test_a_line_that_is_no_query_is_named(line: str, message: str) -> None:
    """It does not affect the others."""
    bad, good = read(line, '{"text": "a"}')

    assert isinstance(bad, BadQuery)
    assert bad.id == 1
    with pytest.raises(QueryError, match=message):
        raise bad.error
    assert isinstance(good, SearchQuery)


def test_a_bad_line_keeps_its_id() -> None:
    """The caller knows which query failed."""
    (bad,) = read('{"id": "mine", "txt": "a"}')

    assert bad.id == "mine"


def test_a_query_is_the_sum_of_what_was_embedded_and_of_rows() -> None:
    """The sum has length 1; a row that comes twice counts twice."""
    a, b = np.eye(4, dtype=np.float32)[:2]
    query = SearchQuery(
        terms=[SearchTerm(text="x"), SearchTerm(like="b", weight=0.25), SearchTerm(like="b", weight=0.5)]
    )

    vector = composed(query, 2 * a, {"b": b})

    assert vector == pytest.approx(np.array([2, 0.75, 0, 0]) / np.hypot(2, 0.75), abs=1e-6)


def test_terms_that_cancel_out_have_no_direction() -> None:
    """As on the server; rounding errors are not searched for."""
    row = np.full(4, 0.5, np.float32)
    query = SearchQuery(terms=[SearchTerm(like="a"), SearchTerm(like="b", weight=-1)])

    with pytest.raises(QueryError, match="cancel out"):
        composed(query, None, {"a": row, "b": row + np.float32(1e-7)})
