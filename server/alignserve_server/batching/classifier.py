"""Zero-shot classification of a call's images: embeds labels and images concurrently, then scores them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignserve_server.batching.admission import AdmissionController, QueueLimits, Reservation
from alignserve_server.batching.backend import InferenceBackend
from alignserve_server.batching.call import CallContext, Timings
from alignserve_server.batching.embedder import Embedder, ImageEmbeddings
from alignserve_server.batching.fair_queue import FairPool
from alignserve_server.batching.label_cache import LabelCache, LabelEmbeddings
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.host.waiting import both
from alignserve_server.model.encoder import ImageInput, image_bytes, l2_normalize
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel, score_images

# Images times labels, and their bytes: scoring these and writing the answer takes about 0.5 ms.
_INLINE_SCORES = 256
_INLINE_BYTES = 1 << 18
_PROMPTS_AT_ONCE = 64  # label prompts that one call queues at once, so that other calls get turns in between


@dataclass(frozen=True, slots=True)
class Classified:
    """Cache hits and timings of `Classifier.classify`."""

    cached_label_count: int
    timings: Timings


class Classifier:
    """Classifies images for all callers. Use only on the event loop's thread."""

    def __init__(
        self,
        embedder: Embedder,
        backend: InferenceBackend,
        observer: BatchObserver,
        aside: FairPool,
        limits: QueueLimits,
        *,
        label_cache_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts with an empty label cache.

        Args:
            embedder: Embeds images and label prompts.
            backend: Where images and prompts wait.
            observer: Notified of label lookups.
            aside: Threads that build large answers.
            limits: Limits of each queue.
            label_cache_size: Maximum number of labels kept.
            clock: Monotonic seconds.
        """
        self._embedder = embedder
        self._backend = backend
        self._aside = aside
        self._without_labels = AdmissionController("Classify", limits, clock=clock)
        # Bounds only bytes: an item is a call, whose labels take more than one byte.
        self._label_bytes = AdmissionController(
            "label set", QueueLimits(limits.max_bytes, limits.max_bytes), clock=clock
        )
        self._labels = LabelCache(
            label_cache_size,
            embedder.embed_prompts,
            observer,
            prompts_at_once=min(_PROMPTS_AT_ONCE, limits.max_waiting_items),
        )

    async def classify(
        self,
        images: list[ImageInput],
        labels: LabelSet,
        top_k: int,
        call: CallContext,
        on_scored: Callable[[list[ScoredLabel]], object],
    ) -> Classified:
        """Scores images against labels; see `Engine.classify`."""
        image_count = len(images)
        with await self._admit_labels(labels, call):
            embedded, label_embeddings, hits = await self._embed_both(images, labels, call)
            normalized = l2_normalize(embedded.embeddings)
            temperature = self._backend.info.temperature
            scored = score_images(normalized, label_embeddings, temperature, top_k)
            scores, size = image_count * len(labels.labels), image_count * labels.size_bytes
            if scores <= _INLINE_SCORES and size <= _INLINE_BYTES:
                for of_image in scored:
                    on_scored(of_image)
            else:
                for _ in range(image_count):
                    await self._aside.run(call.flow, [lambda: on_scored(next(scored))])
        return Classified(hits, embedded.timings)

    async def _admit_labels(self, labels: LabelSet, call: CallContext) -> Reservation:
        """Admits the bytes of labels and templates, which a call holds until it ends."""
        if call.waits_for_room:
            return await self._label_bytes.wait(1, labels.size_bytes, call.flow)
        return self._label_bytes.reserve(1, labels.size_bytes, call.flow)

    async def _embed_both(
        self, images: list[ImageInput], labels: LabelSet, call: CallContext
    ) -> tuple[ImageEmbeddings, LabelEmbeddings, int]:
        """Embeds images and labels; also returns how many labels were in the cache."""
        cached = self._labels.cached(labels)
        if cached is not None:
            return await self._embedder.embed_images(images, call), cached, len(cached)
        with await self._admit_without_labels(images, call):
            return await self._embed_side_by_side(images, labels, call)

    async def _admit_without_labels(self, images: Sequence[ImageInput], call: CallContext) -> Reservation:
        """Admits a call that waits for labels: bounds the number of such calls even if no image waits."""
        items, size_bytes = len(images), sum(map(image_bytes, images))
        if call.waits_for_room:
            return await self._without_labels.wait(items, size_bytes, call.flow)
        await self._backend.check_not_crowded(call.flow)
        return self._without_labels.reserve(items, size_bytes, call.flow, call.seconds_left())

    async def _embed_side_by_side(
        self, images: list[ImageInput], labels: LabelSet, call: CallContext
    ) -> tuple[ImageEmbeddings, LabelEmbeddings, int]:
        (label_embeddings, hits), embedded = await both(
            self._embed_labels(labels, call), self._embedder.embed_images(images, call)
        )
        return embedded, label_embeddings, hits

    async def _embed_labels(self, labels: LabelSet, call: CallContext) -> tuple[LabelEmbeddings, int]:
        start = time.monotonic()
        try:
            return await self._labels.embed(labels, call.flow, call.paths.label)
        finally:
            call.trace.note("labels", start, time.monotonic())
