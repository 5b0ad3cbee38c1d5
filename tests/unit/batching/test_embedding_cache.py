"""The embedding cache is bounded in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from alignserve_server.batching.embedding_cache import EmbeddingCache
from alignserve_server.batching.observer import ModalityObserver
from alignserve_server.observability.batch_observer import MetricsObserver

DIMENSION = 100
ENTRY_BYTES = 4 * DIMENSION + 1 + 300  # embedding, key and the objects around them


@pytest.fixture
def counted(observer: MetricsObserver) -> ModalityObserver:
    return observer.of("text")


def _embedding(value: float) -> np.ndarray:
    return np.full(DIMENSION, value, np.float32)


def _filled(counted: ModalityObserver, max_entries: int, keys: bytes) -> EmbeddingCache:
    cache = EmbeddingCache(max_entries * ENTRY_BYTES, counted)
    for key in keys:
        _put(cache, key)
    return cache


def _put(cache: EmbeddingCache, key: int) -> None:
    cache.put_all([bytes([key])], _embedding(key)[np.newaxis])


def _kept(cache: EmbeddingCache, keys: bytes) -> bytes:
    return bytes(key for key in keys if cache.get(bytes([key])) is not None)


def test_a_stored_embedding_is_returned(counted):
    """It is found by its key and unchanged."""
    cache = _filled(counted, 2, b"a")

    found = cache.get(b"a")

    np.testing.assert_array_equal(found, _embedding(ord("a")))
    assert cache.get(b"b") is None


def test_the_least_recently_used_goes_first(counted):
    """A hit counts as a use."""
    cache = _filled(counted, 2, b"ab")

    cache.get(b"a")
    _put(cache, ord("c"))

    assert _kept(cache, b"abc") == b"ac"


def test_a_row_does_not_keep_its_batch_in_memory(counted):
    """Rows that are views would keep whole batches in memory."""
    cache = EmbeddingCache(1 << 20, counted)
    batch = np.ones((64, DIMENSION), np.float32)

    cache.put_all([b"a"], batch[3:4])

    (found,) = cache.get_all([b"a"])
    assert found == batch[3].tobytes()


@pytest.mark.parametrize("max_bytes", [0, ENTRY_BYTES - 1])
def test_an_embedding_larger_than_the_cache_is_not_kept(counted, max_bytes):
    """The cache does not exceed its bound, even for a single embedding."""
    cache = EmbeddingCache(max_bytes, counted)

    _put(cache, ord("a"))

    assert cache.get(b"a") is None


def test_hits_misses_and_memory_are_counted(counted, metrics):
    """The metrics show hits, misses, entries and bytes."""
    cache = _filled(counted, 2, b"abc")

    _kept(cache, b"abc")

    names = ("hits_total", "misses_total", "entries", "bytes")
    values = [
        metrics.registry.get_sample_value(f"alignserve_embedding_cache_{name}", {"modality": "text"})
        for name in names
    ]
    assert values == [2, 1, 2, 2 * ENTRY_BYTES]


def test_a_cache_that_is_off_counts_nothing(counted, metrics):
    """Counted misses would look like a cache that does not work."""
    EmbeddingCache(0, counted).get(b"a")

    misses = metrics.registry.get_sample_value(
        "alignserve_embedding_cache_misses_total", {"modality": "text"}
    )
    assert misses == 0
