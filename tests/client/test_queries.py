"""Composed queries, by both clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import alignserve
import numpy as np
import pytest
from alignserve import AsyncClient, Client, Query, QueryTerm
from alignserve._queries import as_queries
from alignserve.testing import FakeServer


def composed(server: FakeServer, *terms: tuple[Any, float]) -> np.ndarray:
    total = sum(weight * server.embedding_of(content) for content, weight in terms)
    return np.asarray(total / np.linalg.norm(total))


def test_a_query_is_the_weighted_sum_of_its_terms(server: FakeServer, client: Client) -> None:
    """Images and texts are added with their weights, and the sum has length 1."""
    vector = client.embed_query([b"bag", ("red", 0.5), ("leather", -0.25)])

    assert np.allclose(vector, composed(server, (b"bag", 1), ("red", 0.5), ("leather", -0.25)), atol=1e-6)


async def test_the_asyncio_client_composes_too(server: FakeServer, async_client: AsyncClient) -> None:
    """Both clients have the same methods."""
    vector = await async_client.embed_query([b"bag", "red"])

    assert np.allclose(vector, composed(server, (b"bag", 1), ("red", 1)), atol=1e-6)


def test_terms_may_be_written_in_every_form(photo: Path) -> None:
    """A text is a str, an image anything else that is one, and a tuple adds a weight."""
    pixels = np.zeros((2, 2, 3), np.uint8)

    given: Query = [
        *("red", photo, b"file", pixels),
        *(("blue", -1), (photo, 2), QueryTerm(image="bag.jpg", weight=0.5)),
    ]

    (terms,), is_one = as_queries(given)

    assert is_one
    assert [(term.text, term.image, term.weight) for term in terms] == [
        ("red", None, 1.0),
        (None, photo, 1.0),
        (None, b"file", 1.0),
        (None, pixels, 1.0),
        ("blue", None, -1.0),
        (None, photo, 2.0),
        (None, "bag.jpg", 0.5),
    ]


def test_requests_are_split_by_terms(server: FakeServer, client: Client) -> None:
    """The server counts terms, so a request has fewer queries than it may have items."""
    queries: list[list[Any]] = [[f"text {number}", (b"image", 0.5), "more"] for number in range(5)]

    rows = client.embed_query(queries)

    assert rows.shape == (5, 8)
    for row, (text, *_) in zip(rows, queries, strict=True):
        assert np.allclose(row, composed(server, (text, 1), (b"image", 0.5), ("more", 1)), atol=1e-6)
    sizes = [
        sum(len(query.terms) for query in call.request.queries)
        for call in server.received
        if call.method == "EmbedQuery"
    ]
    assert sizes == [3] * 5  # 4 items at most


def test_short_queries_share_a_request(server: FakeServer, client: Client) -> None:
    """As many queries as have the most terms go together; the requests may arrive in either order."""
    client.embed_query([["a"], ["b"], ["c", "d"], ["e"]])

    sizes = [len(call.request.queries) for call in server.received if call.method == "EmbedQuery"]
    assert sorted(sizes) == [1, 3]


def test_a_query_with_more_terms_than_a_request_is_refused(client: Client) -> None:
    """A query cannot be split; the server's error comes back."""
    with pytest.raises(alignserve.InvalidArgumentError) as caught:
        client.embed_query([["a"] * 5, ["b"]])

    assert caught.value.reason == "BATCH_TOO_LARGE"


def test_queries_without_terms_are_split_like_others(client: Client) -> None:
    """Each is named; together they are not too many for a request."""
    found = client.embed_query([[] for _ in range(10)], on_error="return")

    errors = [error for error in found if isinstance(error, alignserve.InvalidArgumentError)]
    assert [error.violations[0].field for error in errors] == [f"queries[{i}].terms" for i in range(10)]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (["a", ("a", -1.0)], "queries[1]"),
        ([("a", 0.0)], "queries[1].terms[0].weight"),
        (["a", b""], "queries[1].terms[1].image.content"),
    ],
    ids=["cancels out", "no weight", "empty image"],
)
def test_an_invalid_query_is_named_by_its_position(client: Client, query: Any, field: str) -> None:
    """The error has the position in the caller's list, and the others are embedded."""
    found = client.embed_query([["x"], query, ["y"]], on_error="return")

    assert isinstance(found[1], alignserve.InvalidArgumentError)
    assert found[1].violations[0].field == field
    assert isinstance(found[0], np.ndarray)
    assert isinstance(found[2], np.ndarray)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("red", "put the str into a list"),
        (np.zeros((2, 2, 3), np.uint8), "put the ndarray into a list"),
        (QueryTerm(text="red"), "put the QueryTerm into a list"),
        ([["red"], "blue"], "str is not a query"),
        ([("red", "blue")], "a term and its weight"),
        ([("red", 1, 2)], "a term and its weight"),
    ],
)
def test_a_query_that_is_none_is_a_mistake(client: Client, query: Any, message: str) -> None:
    """What could be misread is refused, with what to write instead."""
    with pytest.raises(TypeError, match=message):
        client.embed_query(query)


@pytest.mark.parametrize("arguments", [{}, {"image": b"x", "text": "x"}, {"text": b"x"}])
def test_a_term_is_an_image_or_a_text(arguments: dict[str, Any]) -> None:
    """A QueryTerm with none or both is a mistake."""
    with pytest.raises(TypeError):
        QueryTerm(**arguments)


def test_no_queries_give_no_rows(client: Client) -> None:
    """An empty list has the shape of its result."""
    assert client.embed_query([]).shape == (0, 8)
