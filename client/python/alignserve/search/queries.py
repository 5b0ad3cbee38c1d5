"""Queries of a store: images, texts and stored rows with weights, and their form in a file.

A file of queries has an object on each line:

    {"text": "a red bag"}
    {"id": "q2", "image": "bag.jpg", "text": "red", "where": {"license": "CC0"}, "top_k": 3}
    {"terms": [{"image": "bag.jpg"}, {"text": "red", "weight": 0.8}, {"like": "a/key", "weight": -0.5}]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve._images import ImageInput
from alignserve._queries import QueryTerm

DEFAULT_TOP_K = 10

_MIN_RELATIVE_LENGTH = 1e-5  # of a sum, relative to its weights; the server's own limit
_SOURCES = ("image", "text", "like")
_TERM_FIELDS = (*_SOURCES, "weight")
_QUERY_FIELDS = ("id", *_SOURCES, "terms", "where", "top_k", "min_similarity")


class QueryError(ValueError):
    """A query cannot be understood, or has no direction."""


# eq=False: an image may be an array, which has no single truth value to compare by.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchTerm:
    """An image, a text or a stored row of a query, with its weight.

    Attributes:
        image: As for `Client.embed_image`.
        text: A text.
        like: The key of a row of the store, whose embedding is used without a server.
        weight: Factor of its embedding; below 0, the query moves away from it.
    """

    image: ImageInput | None = None
    text: str | None = None
    like: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.image, self.text, self.like)) != 1:
            raise QueryError("a term is an image, a text or the key of a row; give one of them")
        if not math.isfinite(self.weight) or self.weight == 0:
            raise QueryError(f"weight {self.weight:g} is not a number other than 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchQuery:
    """What to search for, and among which rows.

    Attributes:
        terms: At least one.
        id: The caller's own, for the answer.
        where: A filter, as `alignserve.search.filters` describes it; checked when the query is answered.
        top_k: Maximum number of rows.
        min_similarity: Only rows with at least this cosine similarity, or `None`.
    """

    terms: Sequence[SearchTerm]
    id: Any = None  # any value of JSON
    where: Mapping[str, Any] = field(default_factory=dict)
    top_k: int = DEFAULT_TOP_K
    min_similarity: float | None = None

    def for_server(self) -> list[QueryTerm]:
        """Returns the terms that the server has to embed."""
        return [
            QueryTerm(image=term.image, text=term.text, weight=term.weight)
            for term in self.terms
            if term.like is None
        ]

    def stored(self) -> dict[str, float]:
        """Returns the weights of stored rows by key."""
        weights: dict[str, float] = {}
        for term in self.terms:
            if term.like is not None:
                weights[term.like] = weights.get(term.like, 0.0) + term.weight
        return weights


@dataclass(frozen=True, slots=True)
class BadQuery:
    """A line that is not a query.

    Attributes:
        id: The caller's own, or the number of the line.
        error: Why it is not one.
    """

    id: Any
    error: QueryError


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryDefaults:
    """What queries of a file have if they do not say otherwise; see `SearchQuery`."""

    where: Mapping[str, Any] = field(default_factory=dict)
    top_k: int = DEFAULT_TOP_K
    min_similarity: float | None = None


def composed(
    query: SearchQuery, embedded: NDArray[np.float32] | None, stored: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Returns the embedding of a query: the weighted sum of its terms, scaled to length 1.

    Args:
        query: The query.
        embedded: (dim,), the weighted sum of the terms for the server, not normalized; `None` without any.
        stored: (dim,) by key, L2-normalized.

    Raises:
        QueryError: The terms cancel out.
    """
    parts = [weight * stored[key].astype(np.float64) for key, weight in query.stored().items()]
    if embedded is not None:
        parts.append(embedded.astype(np.float64))
    total = np.sum(parts, axis=0)
    length = float(np.linalg.norm(total))
    if not length > _MIN_RELATIVE_LENGTH * sum(abs(term.weight) for term in query.terms):
        raise QueryError("the terms of the query cancel out; change their weights")
    return np.asarray(total / length, np.float32)


def read_queries(lines: Iterable[str], defaults: QueryDefaults) -> Iterator[SearchQuery | BadQuery]:
    """Yields the query of each line that is not blank, or why it is not one.

    Args:
        lines: JSON, one object each.
        defaults: For what a line does not say. A query without an id gets the number of its line, from 1.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _read(line, number, defaults)


def _read(line: str, number: int, defaults: QueryDefaults) -> SearchQuery | BadQuery:
    id_: Any = number
    try:
        given = _parsed(line)
        id_ = given.get("id", number)
        _check_fields(given, _QUERY_FIELDS, "a query")
        return SearchQuery(
            terms=_terms(given),
            id=id_,
            where=_where(given, defaults),
            top_k=_top_k(given.get("top_k", defaults.top_k)),
            min_similarity=_min_similarity(given.get("min_similarity", defaults.min_similarity)),
        )
    except QueryError as error:
        return BadQuery(id_, error)


def _parsed(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise QueryError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise QueryError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise QueryError('it is not an object, such as {"text": "a cat"}')
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _where(given: dict[str, Any], defaults: QueryDefaults) -> Mapping[str, Any]:
    where = given.get("where")
    if where is None:
        return defaults.where
    if not isinstance(where, dict):
        raise QueryError('where is not an object, such as {"license": "CC0"}')
    return {**defaults.where, **where}


def _terms(given: dict[str, Any]) -> list[SearchTerm]:
    plain = {name: given[name] for name in _SOURCES if given.get(name) is not None}
    terms = given.get("terms")
    if (terms is None) == (not plain):
        raise QueryError("it needs either terms, or an image, a text or the key of a row (like)")
    if terms is None:
        return [_term({name: value}) for name, value in plain.items()]
    if not isinstance(terms, list) or not terms:
        raise QueryError("terms is not a list with at least one term")
    return [_term(term) for term in terms]


def _term(given: object) -> SearchTerm:
    if not isinstance(given, dict):
        raise QueryError('a term is not an object, such as {"text": "red", "weight": 0.5}')
    _check_fields(given, _TERM_FIELDS, "a term")
    for name in _SOURCES:
        if not isinstance(given.get(name), (str, type(None))):
            raise QueryError(f"{name} of a term is not text")
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise QueryError(f"weight {weight!r} is not a number")
    image = given.get("image")
    return SearchTerm(
        image=None if image is None else Path(image),
        text=given.get("text"),
        like=given.get("like"),
        weight=_as_float(weight),
    )


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise QueryError("a number is too large") from None


def _top_k(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise QueryError(f"top_k {value!r} is not a whole number above 0")
    return value


def _min_similarity(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
        raise QueryError(f"min_similarity {value!r} is not a number from -1 to 1")
    return float(value)


def _check_fields(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise QueryError(f"unknown field {unknown[0]!r}; {what} has {', '.join(known)}")
