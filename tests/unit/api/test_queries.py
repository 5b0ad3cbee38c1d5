"""Composed queries are checked before any work is done for them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from alignserve_server.api import PixelArray, QueryTerm
from alignserve_server.api.queries import check_queries, joint_inputs, paths_of_terms
from alignserve_server.batching.call import FIELD_PATHS
from alignserve_server.errors import BatchTooLarge, InvalidArgument, QueryInvalid, RequestEmpty

from tests.unit.api.test_limits import LIMITS, fields_of

LIMITS_OF_3 = replace(LIMITS, max_client_batch_size=3)
PIXELS = PixelArray(1, 1, b"rgb")


def refusal_of(queries: list[list[QueryTerm]]) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refused:
        check_queries(queries, LIMITS_OF_3, FIELD_PATHS)
    return refused.value


def test_terms_of_all_queries_count_together() -> None:
    """The limit is on what is embedded, however it is divided."""
    check_queries([[QueryTerm("a")], [QueryTerm(b"b"), QueryTerm(PIXELS)]], LIMITS_OF_3, FIELD_PATHS)

    error = refusal_of([[QueryTerm("a")], [QueryTerm("b")] * 3])

    assert type(error) is BatchTooLarge
    assert error.message == "queries: 4 terms in all queries, limit 3; send fewer per request"


def test_queries_without_terms_are_limited_too() -> None:
    """The error of each would otherwise take as long to build as the request is long."""
    error = refusal_of([[]] * 4)

    assert type(error) is BatchTooLarge
    assert error.message == "queries: 4 queries, limit 3; send fewer per request"


def test_there_is_at_least_one_query() -> None:
    """An empty request is refused like other empty ones."""
    assert type(refusal_of([])) is RequestEmpty


@pytest.mark.parametrize("weight", [0.0, -0.0, math.nan, math.inf, -math.inf])
def test_a_weight_is_finite_and_not_zero(weight: float) -> None:
    """Zero would leave the term out, and others have no sum."""
    error = refusal_of([[QueryTerm("a"), QueryTerm("b", weight)]])

    assert type(error) is QueryInvalid
    assert fields_of(error) == ["queries[0].terms[1].weight"]


def test_everything_at_fault_is_named() -> None:
    """Queries without terms, empty terms, empty images and weights, in the order of the request."""
    error = refusal_of([[QueryTerm(None, 0.0)], [], [QueryTerm(b""), QueryTerm("a", math.nan)]])

    assert type(error) is QueryInvalid
    assert [(violation.field, violation.reason) for violation in error.violations] == [
        ("queries[0].terms[0]", "QUERY_INVALID"),
        ("queries[0].terms[0].weight", "QUERY_INVALID"),
        ("queries[1].terms", "QUERY_INVALID"),
        ("queries[2].terms[0].image.content", "REQUEST_EMPTY"),
        ("queries[2].terms[1].weight", "QUERY_INVALID"),
    ]


def test_images_and_texts_keep_their_places() -> None:
    """Each has the path of its term, whatever its position among the images or texts."""
    inputs = joint_inputs([[QueryTerm("a"), QueryTerm(b"b")], [QueryTerm(PIXELS), QueryTerm("c")]])

    paths = paths_of_terms(FIELD_PATHS, inputs)

    assert (inputs.images, inputs.image_places) == ([b"b", PIXELS], [(0, 1), (1, 0)])
    assert (inputs.texts, inputs.text_places) == (["a", "c"], [(0, 0), (1, 1)])
    assert paths.image(0) == "queries[0].terms[1].image.content"
    assert paths.pixels(1) == "queries[1].terms[0].image.pixels"
    assert paths.text(1) == "queries[1].terms[1].text"
