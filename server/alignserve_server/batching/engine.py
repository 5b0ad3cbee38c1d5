"""The entry point to batching: one `Engine` embeds and classifies for all callers."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import InferenceBackend
from alignserve_server.batching.call import CallContext
from alignserve_server.batching.classifier import Classified, Classifier
from alignserve_server.batching.embedder import Embedder, ImageEmbeddings, TextEmbeddings
from alignserve_server.batching.fair_queue import FairPool, Flow
from alignserve_server.batching.joint import JointEmbeddings, JointInputs, embed_jointly
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.preprocessor import Preprocessor
from alignserve_server.model.encoder import ImageInput, ModelInfo
from alignserve_server.model.zero_shot import LabelSet, ScoredLabel

_T = TypeVar("_T")


class Engine:
    """Embeds and classifies for all callers. Use only on the event loop's thread."""

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
        """Connects the parts.

        Args:
            preprocessor: Decodes and tokenizes inputs. Owned by this object from now on.
            backend: Admits and embeds inputs.
            observer: Notified of calls and labels.
            limits: Limits of each of the backend's queues.
            label_cache_size: Maximum number of labels kept.
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
        """The model being served."""
        return self._backend.info

    def close(self) -> None:
        """Stops the threads for texts and answers."""
        self._preprocessor.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run_aside(self, flow: Flow, job: Callable[[], _T]) -> _T:
        """Runs a job of more than a millisecond off the event loop, at the caller's turn.

        A job should take at most a few milliseconds, so that other callers get turns in between.
        """
        (result,) = await self._aside.run(flow, [job])
        return result

    def embed_images(
        self, images: list[ImageInput], call: CallContext
    ) -> Coroutine[Any, Any, ImageEmbeddings]:
        """Embeds images. Empties the list: each image is dropped once it is decoded.

        Raises:
            InvalidArgument: Images cannot be read; names each by the call's paths.
            ServingError: The call was refused, expired or failed.
        """
        return self._embedder.embed_images(images, call)

    def embed_texts(
        self, texts: Sequence[str], call: CallContext, *, truncate: bool = False
    ) -> Coroutine[Any, Any, TextEmbeddings]:
        """Embeds texts.

        Raises:
            InvalidArgument: Texts are blank or too long; names each by the call's paths.
            ServingError: The call was refused, expired or failed.
        """
        return self._embedder.embed_texts(texts, call, truncate=truncate)

    def embed_jointly(
        self, inputs: JointInputs, call: CallContext, *, truncate: bool = False
    ) -> Coroutine[Any, Any, JointEmbeddings]:
        """Embeds the images and texts of a call concurrently. If some cannot be embedded, the others leave.

        Empties the list of images, as `embed_images` does. `call.paths` names images and texts by their
        positions in the lists.

        Raises:
            InvalidArgument: Images or texts are invalid; names all of them, in the order of their places.
            ServingError: The call was refused, expired or failed.
        """
        return embed_jointly(self._embedder, inputs, call, truncate=truncate)

    def classify(
        self,
        images: list[ImageInput],
        labels: LabelSet,
        top_k: int,
        call: CallContext,
        on_scored: Callable[[list[ScoredLabel]], object],
    ) -> Coroutine[Any, Any, Classified]:
        """Scores images against labels. The caller must have checked labels and templates.

        Empties `images`, as `embed_images` does. Calls `on_scored` once per image, in order, with the
        image's labels, best first; on another thread if there are many.

        Raises:
            InvalidArgument: Images cannot be read, or labels are too long; names each.
            ServingError: The call was refused, expired or failed.
        """
        return self._classifier.classify(images, labels, top_k, call, on_scored)
