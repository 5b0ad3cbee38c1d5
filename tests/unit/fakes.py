"""Shared by unit tests: a clock that tests advance, entries, and an encoder that tests can observe."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import PreparedItems
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.engine import Engine
from alignserve_server.batching.fair_queue import ANONYMOUS, Flow
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.batching.preprocessor import Preprocessor
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.request import Answer, Embedded
from alignserve_server.model.encoder import Embeddings, PixelValues, TokenIds, TokenizedText
from alignserve_server.model.fake import FakeEncoder

_TIMEOUT_SECONDS = 30.0  # reached only by a failing test
_NO_CACHE = CacheBytes(0, 0)


class FakeClock:
    """A monotonic clock that moves only when advanced."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class WatchedEncoder(FakeEncoder):
    """A `FakeEncoder` that signals when a forward starts, so that tests can act while the device is busy."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = threading.Semaphore(0)

    @property
    def batch_sizes(self) -> list[int]:
        return [len(batch.keys) for batch in self.batches]

    @property
    def seen(self) -> list[bytes]:
        return [key for batch in self.batches for key in batch.keys]

    def hold(self) -> None:
        """Makes forwards wait for `resume`."""
        self.gate.clear()

    def resume(self) -> None:
        """Lets forwards continue."""
        self.gate.set()

    async def begun(self) -> None:
        """Waits until one more forward has started."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=_TIMEOUT_SECONDS)

    def forget_begun(self) -> None:
        """Makes `begun` count only forwards that start from now on."""
        while self._begun.acquire(blocking=False):
            pass

    def encode_images(self, batch: Sequence[PixelValues]) -> Embeddings:
        self._begun.release()
        return super().encode_images(batch)

    def encode_texts(self, batch: Sequence[TokenIds]) -> Embeddings:
        self._begun.release()
        return super().encode_texts(batch)


def entry(
    name: str = "", *, length: int = 1, size_bytes: int = 1, enqueue_time: float = 0.0, flow: Flow = ANONYMOUS
) -> Entry:
    """Builds an entry that no caller waits for."""
    return Entry(name, length, size_bytes, enqueue_time, flow)


def submit(
    batcher: Batcher, encoder: FakeEncoder, *contents: bytes | str, **options: Any
) -> asyncio.Future[Embedded]:
    """Submits images (bytes) or texts as one request; cancelling the future of its answer withdraws it."""
    answer: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
    is_text = isinstance(contents[0], str)
    payloads = [_payload(encoder, content) for content in contents]
    keys = [content.encode() if isinstance(content, str) else content for content in contents]
    items = PreparedItems(payloads, [len(content) for content in contents], keys)
    request = batcher.submit("text" if is_text else "image", items, partial(_set, answer), **options)
    answer.add_done_callback(lambda _: batcher.withdraw(request))
    return answer


def submit_each(
    batcher: Batcher, encoder: FakeEncoder, *contents: bytes | str, **options: Any
) -> list[asyncio.Future[Embedded]]:
    """Submits each item as a request of its own."""
    return [submit(batcher, encoder, content, **options) for content in contents]


def _payload(encoder: FakeEncoder, content: bytes | str) -> Any:  # Any: pixels or token ids
    if isinstance(content, bytes):
        return encoder.preprocess_image(content)
    return encoder.tokenize(content, truncate=False).token_ids


def _set(future: asyncio.Future[Embedded], answer: Answer) -> None:
    if future.cancelled():
        return
    if isinstance(answer, Embedded):
        future.set_result(answer)
    else:
        future.set_exception(answer)


def names(entries: Sequence[Entry]) -> list[Any]:
    """Returns the payloads of entries built by `entry`."""
    return [each.payload for each in entries]


def text_of(*ids: int) -> TokenizedText:
    """Builds a tokenized text."""
    return TokenizedText(ids)


def unit(*values: float) -> np.ndarray:
    """Builds a vector of length 1."""
    vector = np.asarray(values, np.float32)
    return vector / np.linalg.norm(vector)


def local_engine(
    encoder: FakeEncoder,
    batcher: Batcher,
    pool: Executor,
    observer: BatchObserver,
    *,
    decode_threads: int,
    limits: QueueLimits,
    label_cache_size: int,
    cache_bytes: CacheBytes = _NO_CACHE,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Builds an engine with a local backend, as the server does."""
    preprocessor = Preprocessor(encoder, pool, observer, decode_threads=decode_threads)
    backend = LocalBackend(encoder.info, batcher, observer, limits, cache_bytes, clock)
    return Engine(preprocessor, backend, observer, limits, label_cache_size=label_cache_size, clock=clock)


async def settle() -> None:
    """Runs the event loop until all remaining work waits for time or a thread."""
    for _ in range(20):
        await asyncio.sleep(0)
