"""Composed queries, as callers write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeAlias, cast

from alignserve._images import ImageInput, is_image, kept


# eq=False: an image may be an array, which has no single truth value to compare by.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryTerm:
    """An image or a text of a query, with its weight.

    Attributes:
        image: A path, the bytes of a file, a file opened in binary mode, a Pillow image, or uint8 pixels.
        text: The text, if there is no image.
        weight: Factor of its embedding; below 0, the query moves away from it.

    Raises:
        TypeError: It has neither an image nor a text, or both, or the text is not a string.
    """

    image: ImageInput | None = None
    text: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.image is None) == (self.text is None):
            raise TypeError("a QueryTerm is either an image or a text; give one of them")
        if self.text is not None and not isinstance(self.text, str):
            raise TypeError(f"the text of a QueryTerm is {type(self.text).__name__}; give str")


Term: TypeAlias = QueryTerm | ImageInput | tuple[ImageInput, float]
"""A `str` is a text, any other image an image, and a tuple either of them with its weight."""

Query: TypeAlias = Sequence[Term]
"""The terms of a query."""


def as_queries(query: Iterable[Term | Query]) -> tuple[list[list[QueryTerm]], bool]:
    """Returns queries as lists of terms, and whether a single one was given. Lists of lists are several.

    Raises:
        TypeError: A term is of another type.
    """
    _check_is_list(query)
    given = list(query)
    if given and not any(isinstance(each, list) for each in given):
        return [as_terms(cast("Query", given))], True
    return [as_terms(_listed(each)) for each in given], False


def as_terms(query: Query) -> list[QueryTerm]:
    """Returns the terms of a query; open files are read.

    Raises:
        TypeError: A term is of another type.
    """
    _check_is_list(query)
    return [_term(each) for each in query]


def _check_is_list(query: object) -> None:
    # A string is a sequence of its letters, and an array one of its rows.
    if is_image(query) or isinstance(query, QueryTerm):
        raise TypeError(f"a query is a list of terms; put the {type(query).__name__} into a list")


def _listed(query: object) -> Query:
    if not isinstance(query, list):
        raise TypeError(f"{type(query).__name__} is not a query; give several queries as lists of terms")
    return query


def _term(term: Term) -> QueryTerm:
    if isinstance(term, QueryTerm):
        return term if term.image is None else replace(term, image=kept(term.image))
    if isinstance(term, tuple):
        return _weighted(term)
    if isinstance(term, str):
        return QueryTerm(text=term)
    return QueryTerm(image=kept(term))


def _weighted(term: tuple[Any, ...]) -> QueryTerm:
    if len(term) != 2 or not isinstance(term[1], Real):
        raise TypeError("a tuple in a query is a term and its weight, such as ('red', 0.5)")
    value, weight = term
    return replace(_term(value), weight=float(weight))
