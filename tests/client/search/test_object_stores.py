"""Stores on an object store: set `TEST_STORE` to the URL of a folder; tests/README.md says how."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

pytest.importorskip("lancedb")

from alignserve.cli import main
from alignserve.search import (
    NoStoreError,
    OtherModelError,
    Store,
    StoreExistsError,
    create_store,
    open_store,
)
from alignserve.testing import FakeServer

from tests.client.search.rows import DIMENSION, entry, vector

pytestmark = pytest.mark.skipif(
    "TEST_STORE" not in os.environ, reason="TEST_STORE, the URL of a folder, is not set"
)


@pytest.fixture
def url() -> str:
    return f"{os.environ['TEST_STORE']}/{uuid4()}.store"


@pytest.fixture
def create(url: str) -> Callable[[], Store]:
    return lambda: create_store(url, fingerprint="f", model="m", embedding_dimension=DIMENSION)


def test_rows_are_put_replaced_searched_and_deleted(create: Callable[[], Store], url: str) -> None:
    """As in a folder; a reader that was open before sees each change."""
    writer = create()
    reader = open_store(url, fingerprint="f")
    writer.put(entry(f"{number}", number, {"n": number}) for number in range(500))
    writer.put([entry("7", 7, {"n": -7})])
    writer.delete(["8"])
    writer.optimize()
    writer.close()

    assert reader.count() == 499
    assert [(hit.key, hit.columns) for hit in reader.search(vector(7), 1)] == [("7", {"n": -7})]
    assert [hit.key for hit in reader.search(vector(7), 9, {"n": {"min": 498}})] in (
        ["498", "499"],
        ["499", "498"],
    )


def test_a_store_is_not_created_over_another(create: Callable[[], Store], url: str) -> None:
    """Nor read with the embeddings of another model, nor where there is none."""
    create().close()

    with pytest.raises(StoreExistsError):
        create()
    with pytest.raises(OtherModelError):
        open_store(url, fingerprint="g")
    with pytest.raises(NoStoreError):
        open_store(f"{url}.other")


def test_photos_are_indexed_and_found(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the commands `index`, twice, and `search`."""
    photos = Path(__file__).parents[2] / "data/photos"
    with FakeServer() as server:
        for _ in range(2):
            assert main(["index", str(photos), "--to", url, "--server", server.target]) == 0
        assert "4 unchanged" in capsys.readouterr().out
        assert main(["search", url, "--text", "a cat", "--server", server.target]) == 0

    found = capsys.readouterr().out
    assert all(path.name in found for path in photos.iterdir())
