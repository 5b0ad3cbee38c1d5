"""Takes a call's items of one modality through admission, preprocessing and the backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.admission import is_served
from alignserve_server.batching.backend import AdmissionRequest, InferenceBackend, PreparedItems
from alignserve_server.batching.call import CallContext, FieldPaths, ItemPath, Timings
from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.observer import BatchObserver, ItemOutcome, ModalityObserver
from alignserve_server.batching.preprocessor import DecodedImage, Preprocessor
from alignserve_server.batching.request import Embedded
from alignserve_server.batching.validation import ModalityValidation
from alignserve_server.errors import (
    ExpiredInQueue,
    InferenceFailed,
    InvalidArgument,
    ServingError,
    all_valid,
    as_value,
)
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import ImageInput, PixelArray, TokenizedText, image_bytes

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ImageEmbeddings:
    """The result of `Embedder.embed_images`."""

    embeddings: NDArray[np.float32]  # (images, embedding_dimension), not normalized
    timings: Timings


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """The result of `Embedder.embed_texts`."""

    embeddings: NDArray[np.float32]  # (texts, embedding_dimension), not normalized
    texts: list[TokenizedText]
    timings: Timings


class Embedder:
    """Embeds images, texts and label prompts of all callers. Use only on the event loop's thread."""

    def __init__(
        self, preprocessor: Preprocessor, backend: InferenceBackend, observer: BatchObserver
    ) -> None:
        self._preprocessor = preprocessor
        self._backend = backend
        self._observers = {modality: observer.of(modality) for modality in MODALITIES}
        self._look_up_image = partial(backend.look_up, "image")
        self._reservations = count(1)

    async def embed_images(
        self, images: list[ImageInput], call: CallContext, validation: ModalityValidation | None = None
    ) -> ImageEmbeddings:
        """Embeds images; see `Engine.embed_images`. If the call also has texts, `validation` is joint."""
        sizes = list(map(image_bytes, images))
        path = _image_path(images, call.paths)
        with await self._admit("image", sizes, call) as items:
            answers = await self._preprocessor.decode(images, call.flow, self._look_up_image)
            decoded = _valid(answers, path, validation)
            items.note_preprocessed()
            missing = _missing(decoded, sizes)
            embedded = await self._backend.embed(items.reservation, missing) if missing.keys else None
        embedded = _with_cached(decoded, embedded)
        return ImageEmbeddings(embedded.embeddings, items.timings(embedded))

    async def embed_texts(
        self,
        texts: Sequence[str],
        call: CallContext,
        validation: ModalityValidation | None = None,
        *,
        truncate: bool,
    ) -> TextEmbeddings:
        """Embeds texts; see `Engine.embed_texts`. If the call also has images, `validation` is joint."""
        sizes = _utf8_sizes(texts)
        with await self._admit("text", sizes, call) as items:
            answers = await self._preprocessor.tokenize(texts, call.flow, truncate=truncate)
            tokenized = _valid(answers, call.paths.text, validation)
            embedded = await self._embed_tokenized(items, tokenized, sizes)
        return TextEmbeddings(embedded.embeddings, tokenized, items.timings(embedded))

    async def embed_prompts(
        self, prompts: Sequence[str], flow: Flow
    ) -> list[NDArray[np.float32] | ServingError]:
        """Embeds label prompts; waits for room as long as a caller waits for the label."""
        tokenized = await self._preprocessor.tokenize(prompts, flow, truncate=False)
        sized = zip(tokenized, _utf8_sizes(prompts), strict=True)
        valid = [(text, size) for text, size in sized if isinstance(text, TokenizedText)]
        embedded = iter(await self._embed_together(valid, flow))
        return [next(embedded) if isinstance(text, TokenizedText) else text for text in tokenized]

    async def _embed_together(
        self, sized: list[tuple[TokenizedText, int]], flow: Flow
    ) -> Sequence[NDArray[np.float32] | InferenceFailed]:
        """Embeds prompts as one call or, if that fails, one by one: other calls may wait for some of them."""
        if not sized:
            return []
        texts, sizes = [text for text, _ in sized], [size for _, size in sized]
        try:
            with await self._admit("text", sizes, CallContext(waits_for_room=True, flow=flow)) as items:
                return list((await self._embed_tokenized(items, texts, sizes)).embeddings)
        except InferenceFailed as error:
            if len(sized) == 1:
                return [as_value(error)]
        embedded = await asyncio.gather(*(self._embed_together([text], flow) for text in sized))
        return [answer for answers in embedded for answer in answers]

    def _embed_tokenized(
        self, items: _AdmittedItems, texts: Sequence[TokenizedText], sizes: Sequence[int]
    ) -> Coroutine[Any, Any, Embedded]:
        items.note_preprocessed()
        prepared = PreparedItems.of_texts([text.token_ids for text in texts], sizes)
        return self._backend.embed(items.reservation, prepared)

    async def _admit(self, modality: str, sizes: Sequence[int], call: CallContext) -> _AdmittedItems:
        arrival_time = time.monotonic()
        reservation = next(self._reservations)
        request = AdmissionRequest(
            modality,
            len(sizes),
            sum(sizes),
            call.flow,
            call.deadline,
            call.waits_for_room,
            call.trace.is_sampled,
        )
        await self._backend.admit(reservation, request)
        return _AdmittedItems(
            self._backend, self._observers[modality], reservation, request, call, arrival_time
        )


class _AdmittedItems:
    """A call's admitted items of one modality. As a context manager, releases them when the call ends."""

    __slots__ = (
        "_admission_time",
        "_arrival_time",
        "_backend",
        "_call",
        "_observer",
        "_preprocess_seconds",
        "_request",
        "reservation",
    )

    def __init__(
        self,
        backend: InferenceBackend,
        observer: ModalityObserver,
        reservation: int,
        request: AdmissionRequest,
        call: CallContext,
        arrival_time: float,
    ) -> None:
        self._backend = backend
        self._observer = observer
        self.reservation = reservation
        self._request = request
        self._call = call
        self._arrival_time = arrival_time

    def __enter__(self) -> _AdmittedItems:
        self._observer.accepted(self._request.flow.caller, self._request.items)
        self._call.trace.follow(self.reservation)
        self._call.on_admitted()
        self._admission_time = time.monotonic()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._observer.ended(self._request.items, _outcome(error, self._call))
        self._backend.release(self.reservation, is_served=is_served(error))

    def note_preprocessed(self) -> None:
        """Records that all items are decoded or tokenized."""
        now, trace, request = time.monotonic(), self._call.trace, self._request
        self._preprocess_seconds = now - self._admission_time
        self._observer.preprocessed(self._preprocess_seconds, trace.exemplar)
        if trace.is_sampled:
            about = {"modality": request.modality, "items": request.items}
            trace.note("admission", self._arrival_time, self._admission_time, **about)
            trace.note("preprocess", self._admission_time, now, **about)

    def timings(self, embedded: Embedded) -> Timings:
        """Returns the timings up to the embeddings."""
        return Timings(
            self._preprocess_seconds,
            embedded.queue_seconds,
            embedded.compute_seconds,
            embedded.batch_size,
            embedded.cached_items,
            embedded.runs,
        )


def _outcome(error: BaseException | None, call: CallContext) -> ItemOutcome:
    if error is None:
        return "ok"
    if isinstance(error, ExpiredInQueue):
        return "expired"
    if isinstance(error, asyncio.CancelledError):
        # gRPC cancels the handler both when the caller cancels and when its deadline passes
        return "expired" if call.is_expired() else "cancelled"
    return "failed"


def _valid(
    answers: Sequence[_T | InvalidArgument], path: ItemPath, validation: ModalityValidation | None
) -> list[_T]:
    return all_valid(answers, path) if validation is None else validation.all_valid(answers, path)


def _image_path(images: Sequence[ImageInput], paths: FieldPaths) -> ItemPath:
    """Returns the path of each image, which depends on whether it is a file or pixels."""
    of = [paths.pixels if isinstance(image, PixelArray) else paths.image for image in images]
    return lambda position: of[position](position)


def _missing(images: Sequence[DecodedImage], sizes: Sequence[int]) -> PreparedItems:
    """Returns the images that were not in the cache."""
    missing = [
        (image.pixels, size, image.key)
        for image, size in zip(images, sizes, strict=True)
        if image.pixels is not None
    ]
    return PreparedItems(*map(list, zip(*missing, strict=True))) if missing else PreparedItems([], [], [])


def _with_cached(images: Sequence[DecodedImage], embedded: Embedded | None) -> Embedded:
    """Merges new embeddings with those from the cache, in the order of the images."""
    cached = [image.embedding for image in images if image.embedding is not None]
    if embedded is None:
        return Embedded(np.stack(cached), 0.0, 0.0, 0, len(cached), frozenset())
    if not cached:
        return embedded
    fresh = iter(embedded.embeddings)
    merged = [next(fresh) if image.embedding is None else image.embedding for image in images]
    return embedded._replace(embeddings=np.stack(merged), cached_items=len(cached))


def _utf8_sizes(texts: Sequence[str]) -> list[int]:
    return [len(text) if text.isascii() else len(text.encode()) for text in texts]
