"""Composed queries: weighted images and texts, whose embeddings are added up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from alignserve_server.api.limits import RequestLimits
from alignserve_server.batching.call import FieldPaths
from alignserve_server.batching.joint import JointInputs
from alignserve_server.errors import BatchTooLarge, InvalidArgument, QueryInvalid, RequestEmpty, check_none
from alignserve_server.model.encoder import ImageInput


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """An image or a text of a composed query."""

    input: ImageInput | str | None  # None if the caller sent neither
    weight: float = 1.0  # factor of the term's embedding


def check_queries(queries: Sequence[Sequence[QueryTerm]], limits: RequestLimits, paths: FieldPaths) -> None:
    """Checks the number of queries and terms, and each weight.

    Raises:
        InvalidArgument: There are no queries, or too many queries or terms; or queries or terms are invalid,
            and the error names all of them.
    """
    limit = limits.max_client_batch_size
    if not queries:
        raise RequestEmpty.at(paths.queries, f"no queries; send from 1 to {limit} terms in total")
    # Queries without terms count as well: a small request can have thousands, with an error for each.
    for count, what in ((sum(map(len, queries)), "terms in all queries"), (len(queries), "queries")):
        if count > limit:
            raise BatchTooLarge.at(paths.queries, f"{count} {what}, limit {limit}; send fewer per request")
    check_none(_errors(queries, paths))


def joint_inputs(queries: Sequence[Sequence[QueryTerm]]) -> JointInputs:
    """Returns the images and texts of checked queries; the place of each is its query and its term."""
    inputs = JointInputs([], [], [], [])
    for q, query in enumerate(queries):
        for t, term in enumerate(query):
            if isinstance(term.input, str):
                inputs.texts.append(term.input)
                inputs.text_places.append((q, t))
            elif term.input is not None:
                inputs.images.append(term.input)
                inputs.image_places.append((q, t))
    return inputs


def paths_of_terms(paths: FieldPaths, inputs: JointInputs) -> FieldPaths:
    """Returns the paths of images and texts by their positions in `inputs`."""
    images, texts = inputs.image_places, inputs.text_places
    return replace(
        paths,
        image=lambda position: paths.term_image(*images[position]),
        pixels=lambda position: paths.term_pixels(*images[position]),
        text=lambda position: paths.term_text(*texts[position]),
    )


def _errors(queries: Sequence[Sequence[QueryTerm]], paths: FieldPaths) -> Iterator[InvalidArgument]:
    for q, query in enumerate(queries):
        if not query:
            yield QueryInvalid.at(paths.terms(q), "no terms; send at least one image or text")
        for t, term in enumerate(query):
            if term.input is None:
                yield QueryInvalid.at(paths.term(q, t), "neither image nor text; send one of them")
            elif term.input == b"":
                yield RequestEmpty.at(paths.term_image(q, t), "no bytes; send an encoded image file")
            if not term.weight or not math.isfinite(term.weight):
                yield QueryInvalid.at(
                    paths.term_weight(q, t), f"weight is {term.weight:g}; send a finite number that is not 0"
                )
