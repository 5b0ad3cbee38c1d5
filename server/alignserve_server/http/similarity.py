"""Sentence similarity, which Hugging Face and text-embeddings-inference share: one text against others."""

from __future__ import annotations

import numpy as np

from alignserve_server.api import CallScope, Service
from alignserve_server.errors import RequestEmpty
from alignserve_server.http import schemas
from alignserve_server.http.embedding import EmbeddingOptions, embed_inputs
from alignserve_server.http.field_table import read
from alignserve_server.http.inputs import MAX_INPUTS, input_entries, text_or_image
from alignserve_server.http.json_fields import Fields, as_text
from alignserve_server.rpc.response_room import ResponseRoom

_SIMILARITY_BYTES = 13  # in JSON, with a comma

FIELDS = (
    read(
        "inputs.source_sentence",
        "the text to compare with the others, or an image as a data URI",
        schemas.PROMPT,
        "a cat",
        required=True,
    ),
    read(
        "inputs.sentences",
        "the others, texts or images",
        schemas.list_of(schemas.PROMPT, limit=MAX_INPUTS - 1),
        ["a dog"],
        required=True,
    ),
)


async def similarities(
    service: Service, inputs: Fields, call: CallScope, room: ResponseRoom, *, truncate: bool
) -> list[float]:
    """Returns the cosine similarity of `source_sentence` to each of `sentences`.

    Raises:
        ServingError: A field is missing or invalid; or the call was refused, expired or failed.
    """
    for name in ("source_sentence", "sentences"):
        if name not in inputs:
            raise RequestEmpty.at(inputs.path_of(name), "is missing; send source_sentence and sentences")
    sources = [(inputs.path_of("source_sentence"), inputs.value("source_sentence"))]
    sentences = input_entries(inputs.value("sentences"), inputs.path_of("sentences"))
    source, *others = [text_or_image(path, as_text(value, path)) for path, value in (*sources, *sentences)]
    if not others:
        raise RequestEmpty.at(inputs.path_of("sentences"), "is empty; send at least one text")
    found = await embed_inputs(
        service,
        [source, *others],
        inputs.path_of("sentences"),
        call,
        EmbeddingOptions(truncate=truncate),
        room,
        lambda _: _SIMILARITY_BYTES,
    )
    cosines = found.embeddings[1:] @ found.embeddings[0]
    within: list[float] = np.clip(cosines, -1.0, 1.0).tolist()  # rounding may exceed 1
    return within
