"""Caches embeddings by content, so that an input sent again is not computed again."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.observer import ModalityObserver

_OVERHEAD_BYTES = 300  # for the objects around a key and its embedding


class EmbeddingCache:
    """A least-recently-used cache of embeddings, bounded in bytes. Thread-safe."""

    def __init__(self, max_bytes: int, observer: ModalityObserver) -> None:
        """Starts empty; if `max_bytes` is 0, stays empty and counts nothing."""
        self._max_bytes = max_bytes
        self._observer = observer
        self._embeddings: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        observer.watch_cache(lambda: len(self._embeddings), lambda: self._bytes)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Returns the embedding, (embedding_dimension,), not normalized, or None. Do not modify it."""
        if not self._max_bytes:
            return None
        with self._lock:
            embedding = self._embeddings.get(key)
            if embedding is None:
                self._observer.cache_missed()
            else:
                self._observer.cache_hit()
                self._embeddings.move_to_end(key)
        return embedding

    def put(self, key: bytes, embedding: NDArray[np.float32]) -> None:
        """Stores an embedding unless it is already cached or larger than the whole cache."""
        size = _size(key, embedding)
        with self._lock:
            if key in self._embeddings or size > self._max_bytes:
                return
            self._embeddings[key] = embedding.copy()  # a row of a batch would keep the whole batch in memory
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= _size(*self._embeddings.popitem(last=False))


def _size(key: bytes, embedding: NDArray[np.float32]) -> int:
    return len(key) + embedding.nbytes + _OVERHEAD_BYTES
