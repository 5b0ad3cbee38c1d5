"""Composed queries: checked and added up as a real server does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from alignserve._fake.script import Failed, invalid, invalid_together
from alignserve.v1 import align_service_pb2 as pb

_MIN_RELATIVE_LENGTH = 1e-5  # of a sum, relative to the weights
# The square of a length has to be a number of full precision in float32.
_MIN_LENGTH = 1e-15
_MAX_LENGTH = float(np.sqrt(np.finfo(np.float32).max))


def check_queries(queries: Sequence[pb.ComposedQuery], limit: int) -> None:
    """Checks the number of queries and terms, and each weight, but not the images and texts."""
    if not queries:
        raise invalid("REQUEST_EMPTY", "queries", "0 queries; send at least 1")
    terms = sum(len(query.terms) for query in queries)
    for count, what in ((terms, "terms in all queries"), (len(queries), "queries")):
        if count > limit:
            raise invalid("BATCH_TOO_LARGE", "queries", f"{count} {what}; send from 1 to {limit}")
    failures = [failed.failure for failed in _failures(queries)]
    if failures:
        raise invalid_together(failures)


def weight_of(term: pb.QueryTerm) -> float:
    """Returns the factor of a term's embedding."""
    return term.weight if term.HasField("weight") else 1.0


def composed(
    vectors: Sequence[NDArray[np.float32]], weights: Sequence[float], path: str, *, normalize: bool
) -> NDArray[np.float32]:
    """Adds up the terms of a query. Refuses it if nothing is left, or the sum does not fit float32."""
    total = np.matmul(weights, np.asarray(vectors, np.float64))
    length = float(np.linalg.norm(total))
    cancels_out = length < _MIN_RELATIVE_LENGTH * sum(map(abs, weights))
    if cancels_out or not (normalize or _MIN_LENGTH <= length <= _MAX_LENGTH):
        raise invalid("QUERY_INVALID", path, "the terms cancel out, or their sum is out of range")
    return np.asarray(total / length if normalize else total, np.float32)


def _failures(queries: Sequence[pb.ComposedQuery]) -> Iterator[Failed]:
    for q, query in enumerate(queries):
        if not query.terms:
            yield invalid("QUERY_INVALID", f"queries[{q}].terms", "no terms; send at least 1")
        for t, term in enumerate(query.terms):
            path, kind = f"queries[{q}].terms[{t}]", term.WhichOneof("input")
            if kind is None:
                yield invalid("QUERY_INVALID", path, "neither image nor text; send one of them")
            elif kind == "image" and is_empty(term.image):
                yield no_bytes(f"{path}.image")
            weight = weight_of(term)
            if weight == 0 or not np.isfinite(weight):
                message = f"weight is {weight:g}; send a finite number other than 0"
                yield invalid("QUERY_INVALID", f"{path}.weight", message)


def is_empty(image: pb.Image) -> bool:
    """Returns whether an image is an encoded one without bytes."""
    return image.WhichOneof("source") != "pixels" and not image.content


def no_bytes(path: str) -> Failed:
    """Returns the refusal of an empty image."""
    return invalid("REQUEST_EMPTY", f"{path}.content", "no bytes; send an encoded image file")
