"""The way of a call: admission, preprocessing, queue, batch, result. One `Engine` serves all callers."""

from __future__ import annotations

import asyncio
import hashlib
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.admission import Place, Room
from alignserve_server.batching.batcher import Batcher, Item
from alignserve_server.batching.call import CallContext, Timings
from alignserve_server.batching.embedding_cache import EmbeddingCache
from alignserve_server.batching.fair_queue import FairPool, Flow
from alignserve_server.batching.queue import Embedded
from alignserve_server.errors import InferenceFailed, InvalidArgument, ServingError, all_valid, as_value
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import Encoder, ModelInfo, PixelValues, TokenizedText, l2_normalize
from alignserve_server.model.zero_shot import LabelCache, LabelSet, ScoredLabel, score_images
from alignserve_server.observability.metrics import Metrics, TrackedItems
from alignserve_server.observability.tracing import CallTrace

_S = TypeVar("_S")
_T = TypeVar("_T")

# Tokenizing less than this takes under 1 ms at worst, with words of a hundred letters of which none makes a
# token, and some 0.1 ms otherwise, as the way to a thread does.
_INLINE_CHARACTERS = 256
# That one job tokenizes: texts up to here, or a longer one; some 0.5 ms, 7 at worst.
_CHARACTERS_AT_ONCE = 2048
_INLINE_SCORES = 256  # images times labels that are scored and put into an answer in some 0.5 ms
_PROMPTS_AT_ONCE = 64  # label prompts that one call queues at once, so that others get in between
_DECODES_PER_THREAD = 2  # one, and the next, so that no thread waits for the event loop
_TOKENIZE_THREADS = 2  # apart from decoding, so that a text does not wait behind images; two, for the longest


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
class Classified:
    """How `Engine.classify` came to its results."""

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
        decode_threads: int,
        max_queue_size: int,
        max_queue_bytes: int,
        label_cache_size: int,
        embedding_cache_bytes: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wires the parts; `decode_threads` are those of the pool, `embedding_cache_bytes` is by modality."""
        self._encoder = encoder
        self._batcher = batcher
        self._decoding = FairPool(preprocess_pool, _DECODES_PER_THREAD * decode_threads)
        self._threads = (ThreadPoolExecutor(_TOKENIZE_THREADS, "tokenize"), ThreadPoolExecutor(1, "aside"))
        self._tokenizing = FairPool(self._threads[0], _TOKENIZE_THREADS)
        self._aside = FairPool(self._threads[1], 1)  # work in Python: a second thread would only take the GIL
        self._metrics = metrics
        self._tokens, self._unknown_tokens = metrics.tokens.labels(), metrics.unknown_tokens.labels()
        room = partial(Room, max_items=max_queue_size, max_bytes=max_queue_bytes, clock=clock)
        self._rooms = {modality: room(modality, on_change=metrics.callers.wait) for modality in MODALITIES}
        self._room_without_labels = room("Classify")
        # For bytes alone: one item is one call, which has more than one of them.
        self._label_room = Room(
            "label set", max_items=max_queue_bytes, max_bytes=max_queue_bytes, clock=clock
        )
        self._caches = {
            modality: EmbeddingCache(embedding_cache_bytes[modality], metrics.modalities[modality])
            for modality in MODALITIES
        }
        prompts_at_once = min(_PROMPTS_AT_ONCE, self._rooms["text"].max_waiting_items)
        self._labels = LabelCache(
            label_cache_size, self._embed_prompts, metrics, prompts_at_once=prompts_at_once
        )

    @property
    def info(self) -> ModelInfo:
        """What is being served."""
        return self._encoder.info

    def close(self) -> None:
        """Ends the threads for texts and answers."""
        for threads in self._threads:
            threads.shutdown(wait=False, cancel_futures=True)

    async def run_aside(self, flow: Flow, job: Callable[[], _T]) -> _T:
        """Runs work of more than a millisecond apart from the event loop, when it is the caller's turn.

        It should be no more than a few milliseconds, so that others get in between.
        """
        (result,) = await self._aside.run(flow, [job])
        return result

    async def embed_images(self, contents: list[bytes], call: CallContext) -> ImageEmbeddings:
        """Embeds encoded images. Empties the list: each image is dropped when it is decoded.

        Raises:
            InvalidArgument: Images that cannot be read; names each as `images[i].content`.
            ServingError: The call was refused, expired or failed.
        """
        decode = partial(self._decode, contents, call.flow)
        work = _Work("image", [len(content) for content in contents], decode)
        results = await self._run(work, call)
        return ImageEmbeddings(_stack(results), work.timings(results))

    async def embed_texts(
        self, texts: Sequence[str], call: CallContext, *, truncate: bool = False
    ) -> TextEmbeddings:
        """Embeds texts.

        Raises:
            InvalidArgument: Texts that are blank or too long; names each as `texts[i]`.
            ServingError: The call was refused, expired or failed.
        """

        async def prepare() -> list[_Prepared[TokenizedText]]:
            tokenized = all_valid(await self._tokenize(texts, call.flow, truncate=truncate), "texts[{}]")
            return list(map(self._look_up_text, tokenized))

        work = _Work("text", _utf8_sizes(texts), prepare)
        results = await self._run(work, call)
        tokenized = [text.payload for text in work.prepared]
        return TextEmbeddings(_stack(results), tokenized, work.timings(results))

    async def classify(
        self,
        contents: list[bytes],
        labels: LabelSet,
        top_k: int,
        call: CallContext,
        on_scored: Callable[[list[ScoredLabel]], object],
    ) -> Classified:
        """Scores encoded images against labels. The caller has checked labels and templates.

        Empties `contents`, as `embed_images` does. `on_scored` is called once per image, in order, with its
        labels, best first; from a thread if they are many.

        Raises:
            InvalidArgument: Images that cannot be read, or labels that are too long; names each.
            ServingError: The call was refused, expired or failed.
        """
        image_count = len(contents)
        with await self._admit_labels(labels, call):
            images, label_embeddings, hits = await self._embed_both(contents, labels, call)
            normalized = l2_normalize(images.embeddings)
            scored = score_images(normalized, label_embeddings, self.info.temperature, top_k)
            if image_count * len(labels.labels) <= _INLINE_SCORES:
                for of_image in scored:
                    on_scored(of_image)
            else:
                for _ in range(image_count):
                    await self.run_aside(call.flow, lambda: on_scored(next(scored)))
        return Classified(hits, images.timings)

    async def _admit_labels(self, labels: LabelSet, call: CallContext) -> Place:
        """Admits the bytes of labels and templates, which a call keeps until it is over."""
        if call.waits_for_room:
            return await self._label_room.wait(1, labels.size_bytes, call.flow)
        return self._label_room.reserve(1, labels.size_bytes, call.flow)

    async def _embed_both(
        self, contents: list[bytes], labels: LabelSet, call: CallContext
    ) -> tuple[ImageEmbeddings, NDArray[np.float32], int]:
        """Embeds images and labels side by side; returns also how many labels were at hand."""
        with ExitStack() as until_done:
            labels_task = asyncio.ensure_future(self._labels.embed(labels, call.flow))
            labels_task.add_done_callback(_retrieve)
            until_done.callback(labels_task.cancel)
            await asyncio.sleep(0)  # one turn of the loop: if all labels were cached, they are there now
            if not labels_task.done():
                until_done.enter_context(await self._admit_without_labels(contents, call))
                if call.trace is not None:
                    labels_task.add_done_callback(partial(_note_labels, call.trace, time.monotonic()))
            images_task = asyncio.ensure_future(self.embed_images(contents, call))
            until_done.callback(images_task.cancel)  # if one fails, the other leaves the queue
            try:
                images, (label_embeddings, hits) = await asyncio.gather(images_task, labels_task)
            finally:
                # The error of a task has this frame in its traceback, which would be a cycle.
                del images_task, labels_task
        return images, label_embeddings, hits

    async def _admit_without_labels(self, contents: Sequence[bytes], call: CallContext) -> Place:
        """Admits a call to wait for its labels, so that those who do are bounded even if no image waits."""
        if not call.waits_for_room:
            self._rooms["text"].check_not_crowded(call.flow)
        return await _admit(self._room_without_labels, list(map(len, contents)), call)

    async def _run(self, work: _Work[_T], call: CallContext) -> list[Embedded]:
        """Takes one modality's items of a call from admission to their results."""
        metrics = self._metrics.modalities[work.modality]
        arrived = time.monotonic()
        place = await _admit(self._rooms[work.modality], work.sizes, call)
        with place, TrackedItems(metrics, len(work.sizes), call.is_expired):
            self._metrics.callers.accept(call.flow.caller, len(work.sizes))
            if call.on_admitted is not None:
                call.on_admitted()
            admitted = time.monotonic()
            work.prepared = await work.prepare()
            prepared = time.monotonic()
            work.preprocess_seconds = prepared - admitted
            metrics.preprocess_seconds.observe(
                work.preprocess_seconds, None if call.trace is None else call.trace.exemplar
            )
            if call.trace is not None:
                count = len(work.sizes)
                call.trace.note("admission", arrived, admitted, modality=work.modality, items=count)
                call.trace.note("preprocess", admitted, prepared, modality=work.modality, items=count)
            return await self._embed(work, call, place)

    async def _embed(self, work: _Work[_T], call: CallContext, place: Place) -> list[Embedded]:
        """Embeds what was not at hand, and keeps it at hand."""
        items = work.missing_items()
        futures = (
            self._batcher.submit(work.modality, items, call.deadline, place.give_back, call.flow, call.trace)
            if items
            else []
        )
        try:
            embedded = await asyncio.gather(*futures)
        finally:
            # Takes those that still wait out of the queue; no effect on the others. The error of a future has
            # this frame in its traceback, so the frame keeps none.
            while futures:
                futures.pop().cancel()
        cache = self._caches[work.modality]
        for item, result in zip(items, embedded, strict=True):
            if item.key is not None:
                cache.put(item.key, result.embedding)
        return work.results(embedded)

    async def _decode(self, contents: list[bytes], flow: Flow) -> list[_Prepared[PixelValues | None]]:
        def decode(position: int) -> _Prepared[PixelValues | None] | InvalidArgument:
            content, contents[position] = contents[position], b""
            return _attempt(self._look_up_image, content)

        try:
            jobs = [partial(decode, position) for position in range(len(contents))]
            return all_valid(await self._decoding.run(flow, jobs), "images[{}].content")
        finally:
            contents.clear()  # if the caller has left: the pool keeps cancelled jobs until their turn

    def _look_up_image(self, content: bytes) -> _Prepared[PixelValues | None]:
        """Finds an image's embedding or, if it is not at hand, decodes the image."""
        key = hashlib.blake2b(content, digest_size=16).digest()
        embedding = self._caches["image"].get(key)
        if embedding is not None:
            return _Prepared(key, None, embedding)
        return _Prepared(key, self._encoder.preprocess_image(content), None)

    def _look_up_text(self, text: TokenizedText) -> _Prepared[TokenizedText]:
        key = array("q", text.input_ids).tobytes()
        return _Prepared(key, text, self._caches["text"].get(key))

    async def _tokenize(
        self, texts: Sequence[str], flow: Flow, *, truncate: bool
    ) -> list[TokenizedText | InvalidArgument]:
        attempt = partial(_attempt, partial(self._encoder.tokenize, truncate=truncate))

        def tokenize(piece: Sequence[str]) -> list[TokenizedText | InvalidArgument]:
            return list(map(attempt, piece))

        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            tokenized = tokenize(texts)
        else:
            jobs = [partial(tokenize, piece) for piece in _pieces(texts)]
            tokenized = list(chain.from_iterable(await self._tokenizing.run(flow, jobs)))
        self._count_tokens(tokenized)
        return tokenized

    def _count_tokens(self, tokenized: Sequence[TokenizedText | InvalidArgument]) -> None:
        valid = [text for text in tokenized if isinstance(text, TokenizedText)]
        self._tokens.inc(sum(len(text.input_ids) for text in valid))
        self._unknown_tokens.inc(sum(text.unknown_token_count for text in valid))

    async def _embed_prompts(
        self, prompts: Sequence[str], flow: Flow
    ) -> list[NDArray[np.float32] | ServingError]:
        """Embeds label prompts; waits for room, for as long as some caller waits for the label."""
        tokenized = await self._tokenize(prompts, flow, truncate=False)
        sized = zip(tokenized, _utf8_sizes(prompts), strict=True)
        valid = [(text, size) for text, size in sized if isinstance(text, TokenizedText)]
        embedded = iter(await self._embed_tokenized(valid, flow))
        return [next(embedded) if isinstance(text, TokenizedText) else text for text in tokenized]

    async def _embed_tokenized(
        self, sized: list[tuple[TokenizedText, int]], flow: Flow
    ) -> Sequence[NDArray[np.float32] | InferenceFailed]:
        if not sized:
            return []

        async def prepare() -> list[_Prepared[TokenizedText]]:
            return [self._look_up_text(text) for text, _ in sized]

        work = _Work("text", [size for _, size in sized], prepare)
        try:
            call = CallContext(waits_for_room=True, flow=flow)
            return [result.embedding for result in await self._run(work, call)]
        except InferenceFailed as error:
            if len(sized) == 1:
                return [as_value(error)]
        # A call fails as a whole, but these may be of labels that others wait for: one by one.
        alone = await asyncio.gather(*(self._embed_tokenized([text], flow) for text in sized))
        return [answer for answers in alone for answer in answers]


@dataclass(frozen=True, slots=True)
class _Prepared(Generic[_T]):
    """One input, ready for the model or with its embedding at hand."""

    key: bytes  # names its content
    payload: _T
    embedding: NDArray[np.float32] | None


@dataclass(slots=True)
class _Work(Generic[_T]):
    """One modality's items of a call, on their way."""

    modality: str
    sizes: Sequence[int]  # bytes, as the caller sent them
    prepare: Callable[[], Awaitable[list[_Prepared[_T]]]]
    prepared: list[_Prepared[_T]] = field(default_factory=list)
    preprocess_seconds: float = 0.0

    def missing_items(self) -> list[Item]:
        """Returns what has to be embedded."""
        return [
            Item(each.payload, _length(each.payload), size, each.key)
            for each, size in zip(self.prepared, self.sizes, strict=True)
            if each.embedding is None
        ]

    def results(self, embedded: Sequence[Embedded]) -> list[Embedded]:
        """Puts what was embedded among what was at hand."""
        if len(embedded) == len(self.prepared):
            return list(embedded)
        fresh = iter(embedded)
        return [
            next(fresh) if each.embedding is None else Embedded(each.embedding, 0.0, 0.0, 0)
            for each in self.prepared
        ]

    def timings(self, results: Sequence[Embedded]) -> Timings:
        return Timings(
            self.preprocess_seconds,
            max(result.queue_seconds for result in results),
            max(result.compute_seconds for result in results),
            max(result.batch_size for result in results),
            sum(each.embedding is not None for each in self.prepared),
        )


async def _admit(room: Room, sizes: Sequence[int], call: CallContext) -> Place:
    if call.waits_for_room:
        return await room.wait(len(sizes), sum(sizes), call.flow)
    return room.reserve(len(sizes), sum(sizes), call.flow, call.seconds_left())


def _note_labels(trace: CallTrace, start: float, _: asyncio.Future[_T]) -> None:
    trace.note("labels", start, time.monotonic())


def _retrieve(task: asyncio.Future[_T]) -> None:
    """Marks the error as retrieved: if its call has left, there is nobody to warn."""
    if not task.cancelled():
        task.exception()


def _attempt(prepare: Callable[[_S], _T], given: _S) -> _T | InvalidArgument:
    """Prepares one input; a bad one is an answer, so that all bad ones of a call are found."""
    try:
        return prepare(given)
    except InvalidArgument as error:
        return as_value(error)


def _pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields runs of texts that are short together, and long ones alone."""
    start = size = 0
    for position, text in enumerate(texts):
        if size and size + len(text) > _CHARACTERS_AT_ONCE:
            yield texts[start:position]
            start, size = position, 0
        size += len(text)
    yield texts[start:]


def _utf8_sizes(texts: Sequence[str]) -> list[int]:
    return [len(text) if text.isascii() else len(text.encode()) for text in texts]


def _length(payload: object) -> int:
    return len(payload.input_ids) if isinstance(payload, TokenizedText) else 1


def _stack(results: Sequence[Embedded]) -> NDArray[np.float32]:
    if len(results) == 1:  # np.stack takes longer than all else that is done with one embedding
        return results[0].embedding[np.newaxis]
    return np.stack([result.embedding for result in results])
