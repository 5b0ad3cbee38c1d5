"""Caches embeddings by content, so that an input sent again is not computed again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

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
                self._observer.cache_looked_up(0, 1)
            else:
                self._embeddings.move_to_end(key)
                self._observer.cache_looked_up(1, 0)
        return embedding

    def get_all(self, keys: Sequence[bytes]) -> list[NDArray[np.float32] | None]:
        """Returns for each key what `get` does."""
        if not self._max_bytes:
            return [None] * len(keys)
        with self._lock:
            found = list(map(self._embeddings.get, keys))
            hits = [key for key, embedding in zip(keys, found, strict=True) if embedding is not None]
            for key in hits:
                self._embeddings.move_to_end(key)
            self._observer.cache_looked_up(len(hits), len(keys) - len(hits))
        return found

    def put(self, key: bytes, embedding: NDArray[np.float32]) -> None:
        """Stores an embedding unless it is already cached or larger than the whole cache."""
        self.put_all(((key, embedding),))

    def put_all(self, embeddings: Iterable[tuple[bytes, NDArray[np.float32]]]) -> None:
        """Stores embeddings by their keys, as `put` does."""
        if not self._max_bytes:
            return
        with self._lock:
            for key, embedding in embeddings:
                size = _size(key, embedding)
                if key in self._embeddings or size > self._max_bytes:
                    continue
                self._embeddings[key] = embedding.copy()  # a row would keep its whole batch in memory
                self._bytes += size
                while self._bytes > self._max_bytes:
                    self._bytes -= _size(*self._embeddings.popitem(last=False))


def _size(key: bytes, embedding: NDArray[np.float32]) -> int:
    return len(key) + embedding.nbytes + _OVERHEAD_BYTES
