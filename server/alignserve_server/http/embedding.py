"""Embeds the inputs of one request, split over the queue and answered in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignserve_server.api import CallContext, CallScope, FieldPaths, ModelInfo, Scope, Service
from alignserve_server.api import ImageInput as EncodedOrPixels
from alignserve_server.errors import RequestEmpty, ServingError
from alignserve_server.http.image_source import decode_image
from alignserve_server.http.inputs import MAX_INPUTS, ImageInput, Input, TextInput, check_count
from alignserve_server.http.vectors import FLOATS
from alignserve_server.rpc.response_room import ResponseRoom

_PARTS_AT_ONCE = 2  # one is prepared while the other is in the model
_ROW_BYTES = 64  # of the answer around an embedding, at most
_INLINE_CHARACTERS = 1 << 16  # of base64, which take about 0.1 ms to decode


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """How inputs are embedded."""

    truncate: bool = False  # texts that are too long, instead of refusing them
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class EmbeddedInputs:
    """The embeddings of a request's inputs, in order."""

    embeddings: NDArray[np.float32]  # (inputs, embedding_dimension)
    token_counts: list[int]  # of the texts; 0 for an image
    model: ModelInfo

    @property
    def token_count(self) -> int:
        """The number of tokens in all texts."""
        return sum(self.token_counts)

    @property
    def text_count(self) -> int:
        """The number of texts; the other inputs are images."""
        return sum(count > 0 for count in self.token_counts)


@dataclass(frozen=True, slots=True)
class _Part:
    """Inputs of one modality that are embedded together."""

    positions: Sequence[int]  # in the request
    inputs: Sequence[Input]


async def embed_inputs(
    service: Service,
    inputs: Sequence[Input],
    path: str,
    call: CallScope,
    options: EmbeddingOptions,
    room: ResponseRoom,
    row_bytes: Callable[[int], int] = FLOATS.row_bytes,
) -> EmbeddedInputs:
    """Embeds up to `MAX_INPUTS` images and texts, `max_client_batch_size` of them at a time.

    The first part is refused if the queue is full; later ones wait for room, and each counts as a request
    against the quota of the caller's key, as it would if the caller had split them. The first error cancels
    the rest.

    Args:
        service: The API.
        inputs: The images and texts.
        path: What the caller calls all of them, in errors.
        call: The account of the call.
        options: How they are embedded.
        room: Room for the answer.
        row_bytes: Returns about how many bytes of the answer an embedding of a given dimension takes.

    Raises:
        ServingError: The call was refused, expired or failed.
    """
    model = service.model_info().model
    call.items = len(inputs)
    if not inputs:
        raise RequestEmpty.at(path, f"no inputs; send from 1 to {MAX_INPUTS}")
    check_count(len(inputs), path)
    await room.take_for_embeddings(path, len(inputs) * (row_bytes(model.embedding_dimension) + _ROW_BYTES))
    found = EmbeddedInputs(
        np.empty((len(inputs), model.embedding_dimension), np.float32), [0] * len(inputs), model
    )
    context = call.context()
    turns = asyncio.Semaphore(_PARTS_AT_ONCE)

    async def embed(part: _Part, is_first: bool) -> None:
        async with turns:
            if not is_first:
                await call.admit_item({Scope.EMBED})
            paths = _paths(path, part)
            await _embed(
                service, part, replace(context, paths=paths, waits_for_room=not is_first), options, found
            )

    try:
        async with asyncio.TaskGroup() as group:
            for number, part in enumerate(_parts(inputs, service.limits.max_client_batch_size)):
                group.create_task(embed(part, number == 0))
    except BaseExceptionGroup as errors:
        raise _first_of(errors) from None
    return found


def _parts(inputs: Sequence[Input], size: int) -> Iterator[_Part]:
    for kind in (TextInput, ImageInput):
        positions = [position for position, each in enumerate(inputs) if isinstance(each, kind)]
        for start in range(0, len(positions), size):
            part = positions[start : start + size]
            yield _Part(part, [inputs[position] for position in part])


def _paths(path: str, part: _Part) -> FieldPaths:
    def path_of(position: int) -> str:
        return part.inputs[position].path

    return FieldPaths(images=path, image=path_of, texts=path, text=path_of)


async def _embed(
    service: Service, part: _Part, context: CallContext, options: EmbeddingOptions, found: EmbeddedInputs
) -> None:
    texts = [each.text for each in part.inputs if isinstance(each, TextInput)]
    if texts:
        embedded = await service.embed_texts(
            texts, context, truncate=options.truncate, normalize=options.normalize
        )
        found.embeddings[part.positions] = embedded.embeddings
        for position, text in zip(part.positions, embedded.texts, strict=True):
            found.token_counts[position] = len(text.input_ids)
        return
    contents = await decode_images([each for each in part.inputs if isinstance(each, ImageInput)])
    images = await service.embed_images(contents, context, normalize=options.normalize)
    found.embeddings[part.positions] = images.embeddings


async def decode_images(images: Sequence[ImageInput]) -> list[EncodedOrPixels]:
    """Decodes base64, from a thread unless it is short.

    Raises:
        InvalidArgument: An image is not base64.
    """

    def decode() -> list[EncodedOrPixels]:
        return [decode_image(image.source, image.path) for image in images]

    if sum(len(image.source) for image in images) <= _INLINE_CHARACTERS:
        return decode()
    return await asyncio.to_thread(decode)


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the first error of a group; those after it are of the same request."""
    known = errors.subgroup(ServingError)
    return (known or errors).exceptions[0]
