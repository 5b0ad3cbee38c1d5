"""Caches embeddings by content, so that an input sent again is not computed again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.observer import ModalityObserver

_OVERHEAD_BYTES = 300  # for the objects around a key and its embedding


class EmbeddingCache:
    """A least-recently-used cache of embeddings, bounded in bytes. Thread-safe.

    Embeddings are kept as bytes: arrays would take longer to make, and rows would keep whole batches.
    """

    def __init__(self, max_bytes: int, observer: ModalityObserver) -> None:
        """Starts empty; if `max_bytes` is 0, stays empty and counts nothing."""
        self._max_bytes = max_bytes
        self._observer = observer
        self._embeddings: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        observer.watch_cache(lambda: len(self._embeddings), lambda: self._bytes)

    @property
    def is_enabled(self) -> bool:
        """Whether anything can be in it."""
        return bool(self._max_bytes)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Returns the embedding, (embedding_dimension,), not normalized and read-only, or None."""
        (embedding,) = self.get_all([key])
        return None if embedding is None else np.frombuffer(embedding, np.float32)

    def get_all(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns for each key the bytes of its embedding, native float32, or None."""
        if not self._max_bytes:
            return [None] * len(keys)
        with self._lock:
            found = list(map(self._embeddings.get, keys))
            misses = found.count(None)
            if misses < len(keys):
                for key, embedding in zip(keys, found, strict=True):
                    if embedding is not None:
                        self._embeddings.move_to_end(key)
            self._observer.cache_looked_up(len(keys) - misses, misses)
        return found

    def put_all(self, keys: Sequence[bytes], embeddings: NDArray[np.float32]) -> None:
        """Stores embeddings, (keys, embedding_dimension), unless they are already there or do not fit."""
        if not self._max_bytes:
            return
        values = embeddings.tobytes()
        size = len(values) // len(keys)
        with self._lock:
            cached = self._embeddings
            for start, key in zip(range(0, len(values), size), keys, strict=True):
                entry_size = len(key) + size + _OVERHEAD_BYTES
                if key not in cached and entry_size <= self._max_bytes:
                    cached[key] = values[start : start + size]
                    self._bytes += entry_size
            while self._bytes > self._max_bytes:
                oldest, value = cached.popitem(last=False)
                self._bytes -= len(oldest) + len(value) + _OVERHEAD_BYTES
