"""What the doors of the server call: one `Engine` embeds and classifies for all callers at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import InferenceBackend
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.classifier import Classified, Classifier
from alignserve_server.batching.embedder import Embedder, ImageEmbeddings, TextEmbeddings
from alignserve_server.batching.fair_queue import FairPool, Flow
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.preprocessor import Preprocessor
from alignserve_server.model.encoder import ModelInfo
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel

_T = TypeVar("_T")


class Engine:
    """Embeds and classifies for all callers at once. Belongs to the event loop's thread."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        backend: InferenceBackend,
        observer: BatchObserver,
        limits: QueueLimits,
        *,
        label_cache_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wires the parts.

        Args:
            preprocessor: Reads inputs. Belongs to this object from now on.
            backend: Admits and embeds them.
            observer: Is told of calls and labels.
            limits: Those of each of the backend's queues.
            label_cache_size: Most labels kept.
            clock: Monotonic seconds.
        """
        self._preprocessor = preprocessor
        self._backend = backend
        self._threads = ThreadPoolExecutor(1, "aside")  # Python code: a second thread would only take the GIL
        self._aside = FairPool(self._threads, 1)
        self._embedder = Embedder(preprocessor, backend, observer)
        self._classifier = Classifier(
            self._embedder,
            backend,
            observer,
            self._aside,
            limits,
            label_cache_size=label_cache_size,
            clock=clock,
        )

    @property
    def info(self) -> ModelInfo:
        """What is being served."""
        return self._backend.info

    def close(self) -> None:
        """Ends the threads for texts and answers."""
        self._preprocessor.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run_aside(self, flow: Flow, job: Callable[[], _T]) -> _T:
        """Runs work of more than a millisecond apart from the event loop, when it is the caller's turn.

        It should take a few milliseconds at most, so that others get in between.
        """
        (result,) = await self._aside.run(flow, [job])
        return result

    async def embed_images(self, contents: list[bytes], call: CallContext) -> ImageEmbeddings:
        """Embeds encoded images. Empties the list: each image is dropped when it is decoded.

        Raises:
            InvalidArgument: Images that cannot be read; names each by the call's paths.
            ServingError: The call was refused, expired or failed.
        """
        return await self._embedder.embed_images(contents, call)

    async def embed_texts(
        self, texts: Sequence[str], call: CallContext, *, truncate: bool = False
    ) -> TextEmbeddings:
        """Embeds texts.

        Raises:
            InvalidArgument: Texts that are blank or too long; names each by the call's paths.
            ServingError: The call was refused, expired or failed.
        """
        return await self._embedder.embed_texts(texts, call, truncate=truncate)

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
        return await self._classifier.classify(contents, labels, top_k, call, on_scored)
