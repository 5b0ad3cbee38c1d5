"""Embeds the images and texts of one call concurrently: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from alignserve_server.batching.call import CallContext, Timings
from alignserve_server.batching.embedder import Embedder
from alignserve_server.batching.validation import JointValidation, Place
from alignserve_server.host.waiting import both
from alignserve_server.model.encoder import Embeddings, ImageInput, TokenizedText


@dataclass(frozen=True, slots=True)
class JointInputs:
    """Images and texts, of which there is at least one in total, and where each is in its request."""

    images: list[ImageInput]
    image_places: list[Place]
    texts: list[str]
    text_places: list[Place]

    @classmethod
    def of_pairs(cls, images: list[ImageInput], texts: list[str]) -> JointInputs:
        """Returns images and texts that belong together by their positions; an image precedes its text."""
        positions = range(len(images))
        return cls(images, [(i, 0) for i in positions], texts, [(i, 1) for i in positions])

    def in_order(self, embedded: JointEmbeddings) -> Embeddings:
        """Returns the embeddings of images and texts in the order of their places."""
        places = [*self.image_places, *self.text_places]
        order = sorted(range(len(places)), key=places.__getitem__)
        return np.concatenate([embedded.images, embedded.texts])[order]


@dataclass(frozen=True, slots=True)
class JointEmbeddings:
    """The embeddings of `JointInputs`."""

    images: Embeddings  # (images, embedding_dimension), not normalized
    texts: Embeddings  # (texts, embedding_dimension), not normalized
    tokenized: list[TokenizedText]
    timings: Timings


async def embed_jointly(
    embedder: Embedder, inputs: JointInputs, call: CallContext, *, truncate: bool
) -> JointEmbeddings:
    """Embeds images and texts; see `Engine.embed_jointly`."""
    if not inputs.texts:
        images = await embedder.embed_images(inputs.images, call)
        return JointEmbeddings(images.embeddings, images.embeddings[:0], [], images.timings)
    if not inputs.images:
        texts = await embedder.embed_texts(inputs.texts, call, truncate=truncate)
        return JointEmbeddings(texts.embeddings[:0], texts.embeddings, texts.texts, texts.timings)
    validation = JointValidation()
    call = replace(call, on_admitted=_at_second_call(call.on_admitted))
    of_images, of_texts = validation.at(inputs.image_places), validation.at(inputs.text_places)
    images, texts = await both(
        validation.complete(embedder.embed_images(inputs.images, call, of_images)),
        validation.complete(embedder.embed_texts(inputs.texts, call, of_texts, truncate=truncate)),
    )
    timings = Timings.of_both(images.timings, texts.timings)
    return JointEmbeddings(images.embeddings, texts.embeddings, texts.texts, timings)


def _at_second_call(callback: Callable[[], None]) -> Callable[[], None]:
    """Returns a function that calls back when it is called for the second time: images and texts are in."""
    has_been_called = False

    def call() -> None:
        nonlocal has_been_called
        if has_been_called:
            callback()
        has_been_called = True

    return call
