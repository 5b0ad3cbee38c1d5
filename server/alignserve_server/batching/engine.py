"""The way of a call: admission, preprocessing, queue, batch, result. One `Engine` serves all callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.admission import Room
from alignserve_server.batching.batcher import Batcher, Item
from alignserve_server.batching.queue import Embedded
from alignserve_server.errors import InvalidArgument, all_valid
from alignserve_server.metrics import MODALITIES, Metrics
from alignserve_server.model.encoder import Encoder, ModelInfo, PixelValues, TokenizedText, l2_normalize
from alignserve_server.model.zero_shot import LabelCache, ScoredLabel, score_labels

_S = TypeVar("_S")
_T = TypeVar("_T")

_INLINE_CHARACTERS = 2048  # tokenizing less than this (some 0.5 ms) costs no more than the way to a thread
_PROMPTS_AT_ONCE = 64  # label prompts that one call queues at once, so that others get in between
_RETRY_DELAY_SECONDS = (0.02, 30.0)  # shortest and longest that callers are told to wait


@dataclass(frozen=True, slots=True)
class Call:
    """What the engine needs to know of an RPC or stream item."""

    deadline: float | None = None  # in the event loop's time
    waits_for_room: bool = False  # streams wait, unary calls are refused

    def is_expired(self) -> bool:
        """Says whether the deadline has passed."""
        return self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a call's time went, in seconds, and the largest batch that served it."""

    preprocess_seconds: float
    queue_seconds: float
    compute_seconds: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class ImageEmbeddings:
    """Answer of `Engine.embed_images`."""

    embeddings: NDArray[np.float32]  # (images, embedding_dimension), not normalized
    timings: Timings


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """Answer of `Engine.embed_texts`."""

    embeddings: NDArray[np.float32]  # (texts, embedding_dimension), not normalized
    texts: list[TokenizedText]
    timings: Timings


@dataclass(frozen=True, slots=True)
class Classifications:
    """Answer of `Engine.classify`."""

    results: list[list[ScoredLabel]]  # one list per image, best label first
    cached_label_count: int
    timings: Timings


class Engine:
    """Embeds and classifies for all callers at once. Belongs to the event loop's thread."""

    def __init__(
        self,
        encoder: Encoder,
        batcher: Batcher,
        preprocess_pool: Executor,
        metrics: Metrics,
        *,
        max_queue_size: int,
        max_queue_bytes: int,
        label_cache_size: int,
    ) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._pool = preprocess_pool
        self._metrics = metrics
        self._labels = LabelCache(label_cache_size, self._embed_prompts, metrics)
        self._rooms = {
            modality: Room(
                modality,
                max_items=max_queue_size,
                max_bytes=max_queue_bytes,
                queued=partial(batcher.queued, modality),
                retry_delay=partial(self._retry_delay, modality),
            )
            for modality in MODALITIES
        }
        batcher.on_room = self._wake

    @property
    def info(self) -> ModelInfo:
        """What is being served."""
        return self._encoder.info

    async def embed_images(self, contents: Sequence[bytes], call: Call) -> ImageEmbeddings:
        """Embeds encoded images.

        Raises:
            InvalidArgument: Images that cannot be read; names each as `images[i].content`.
            ServingError: The call was refused, expired or failed.
        """
        work = _Work("image", [len(content) for content in contents], partial(self._decode, contents))
        results = await self._run(work, call)
        return ImageEmbeddings(_stack(results), work.timings(results))

    async def embed_texts(
        self, texts: Sequence[str], call: Call, *, truncate: bool = False
    ) -> TextEmbeddings:
        """Embeds texts.

        Raises:
            InvalidArgument: Texts that are blank or too long; names each as `texts[i]`.
            ServingError: The call was refused, expired or failed.
        """

        async def prepare() -> list[TokenizedText]:
            return all_valid(await self._tokenize(texts, truncate=truncate), "texts[{}]")

        work = _Work("text", _utf8_sizes(texts), prepare)
        results = await self._run(work, call)
        return TextEmbeddings(_stack(results), work.prepared, work.timings(results))

    async def classify(
        self,
        contents: Sequence[bytes],
        labels: Sequence[str],
        templates: Sequence[str],
        top_k: int,
        call: Call,
    ) -> Classifications:
        """Scores encoded images against labels. The caller has checked labels and templates.

        Raises:
            InvalidArgument: Images that cannot be read, or labels that are too long; names each.
            ServingError: The call was refused, expired or failed.
        """
        images_task = asyncio.ensure_future(self.embed_images(contents, call))
        labels_task = asyncio.ensure_future(self._labels.embed(labels, templates))
        try:
            images, (label_embeddings, hits) = await asyncio.gather(images_task, labels_task)
        finally:
            images_task.cancel()  # if one fails, the other leaves the queue
            labels_task.cancel()
        results = [
            score_labels(image, label_embeddings, self.info.temperature, top_k)
            for image in l2_normalize(images.embeddings)
        ]
        return Classifications(results, hits, images.timings)

    def _wake(self, modality: str) -> None:
        self._rooms[modality].wake()

    async def _run(self, work: _Work[_T], call: Call) -> list[Embedded]:
        """Takes one modality's items of a call from admission to their results."""
        room = self._rooms[work.modality]
        count, size_bytes = len(work.sizes), sum(work.sizes)
        if call.waits_for_room:
            await room.wait(count, size_bytes)
        else:
            room.reserve(count, size_bytes)
        with self._metrics.track_items(work.modality, count, call.is_expired):
            try:
                await self._prepare(work)
                futures = self._batcher.submit(work.modality, work.items(), call.deadline)
            finally:
                room.release(count, size_bytes)  # after `submit`: never less than what is there
            try:
                return await asyncio.gather(*futures)
            finally:
                for future in futures:
                    future.cancel()  # frees the places of those that still wait; no effect on the others

    async def _prepare(self, work: _Work[_T]) -> None:
        start = time.perf_counter()
        work.prepared = await work.prepare()
        work.preprocess_seconds = time.perf_counter() - start
        self._metrics.preprocess_seconds.labels(work.modality).observe(work.preprocess_seconds)

    async def _decode(self, contents: Sequence[bytes]) -> list[PixelValues]:
        loop = asyncio.get_running_loop()
        decode = partial(_attempt, self._encoder.preprocess_image)
        jobs = [loop.run_in_executor(self._pool, decode, content) for content in contents]
        return all_valid(await asyncio.gather(*jobs), "images[{}].content")

    async def _tokenize(
        self, texts: Sequence[str], *, truncate: bool
    ) -> list[TokenizedText | InvalidArgument]:
        tokenize = partial(_attempt, partial(self._encoder.tokenize, truncate=truncate))
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return [tokenize(text) for text in texts]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: [tokenize(text) for text in texts])

    async def _embed_prompts(self, prompts: Sequence[str]) -> list[NDArray[np.float32] | InvalidArgument]:
        """Embeds label prompts; waits for room, for as long as some caller waits for the label."""
        answers: list[NDArray[np.float32] | InvalidArgument] = []
        step = min(_PROMPTS_AT_ONCE, self._rooms["text"].max_waiting_items)
        for start in range(0, len(prompts), step):
            chunk = prompts[start : start + step]
            tokenized = await self._tokenize(chunk, truncate=False)
            valid = [text for text in tokenized if isinstance(text, TokenizedText)]
            embedded = iter(await self._embed_tokenized(valid))
            answers += [
                next(embedded).embedding if isinstance(text, TokenizedText) else text for text in tokenized
            ]
        return answers

    async def _embed_tokenized(self, texts: list[TokenizedText]) -> list[Embedded]:
        if not texts:
            return []

        async def prepare() -> list[TokenizedText]:
            return texts

        sizes = [len(text.input_ids) for text in texts]
        return await self._run(_Work("text", sizes, prepare), Call(waits_for_room=True))

    def _retry_delay(self, modality: str) -> float:
        shortest, longest = _RETRY_DELAY_SECONDS
        return min(max(self._batcher.seconds_to_drain(modality), shortest), longest)


@dataclass(slots=True)
class _Work(Generic[_T]):
    """One modality's items of a call, on their way."""

    modality: str
    sizes: Sequence[int]  # bytes, as the caller sent them
    prepare: Callable[[], Awaitable[list[_T]]]
    prepared: list[_T] = field(default_factory=list)
    preprocess_seconds: float = 0.0

    def items(self) -> list[Item]:
        return [
            Item(payload, len(payload.input_ids) if isinstance(payload, TokenizedText) else 1, size)
            for payload, size in zip(self.prepared, self.sizes, strict=True)
        ]

    def timings(self, results: Sequence[Embedded]) -> Timings:
        return Timings(
            self.preprocess_seconds,
            max(result.queue_seconds for result in results),
            max(result.compute_seconds for result in results),
            max(result.batch_size for result in results),
        )


def _attempt(prepare: Callable[[_S], _T], given: _S) -> _T | InvalidArgument:
    """Prepares one input; a bad one is an answer, so that all bad ones of a call are found."""
    try:
        return prepare(given)
    except InvalidArgument as error:
        return error


def _utf8_sizes(texts: Sequence[str]) -> list[int]:
    return [len(text.encode()) for text in texts]


def _stack(results: Sequence[Embedded]) -> NDArray[np.float32]:
    return np.stack([result.embedding for result in results])
