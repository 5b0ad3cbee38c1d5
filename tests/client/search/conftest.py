"""Stores to fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alignserve.search import Store, create_store

from tests.client.search.rows import DIMENSION


@pytest.fixture
def new_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Creates stores, and closes them at the end."""
    opened: list[Store] = []

    def create(name: str = "store", fingerprint: str = "fake-8") -> Store:
        store = create_store(
            tmp_path / name, fingerprint=fingerprint, model="fake", embedding_dimension=DIMENSION
        )
        opened.append(store)
        return store

    yield create
    for store in opened:
        store.close()


@pytest.fixture
def store(new_store: Callable[..., Store]) -> Store:
    return new_store()
