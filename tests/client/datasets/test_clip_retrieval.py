"""The layout that clip-retrieval and autofaiss read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.datasets.row import Row
from alignserve.datasets.sinks.clip_retrieval import ClipRetrievalSink
from alignserve.datasets.source import Dataset
from alignserve.testing import FakeServer

from tests.client.datasets.jobs import embed_dataset
from tests.client.datasets.memory import MemoryFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def pairs(count: int) -> Dataset:
    rows = [
        Row(
            f"k{row}",
            image=b"image %d" % row,
            text=f"text {row}",
            columns={"url": f"u{row}", "key": f"own{row}"},
        )
        for row in range(count)
    ]
    schema = pa.schema([("url", pa.string()), ("key", pa.string())])
    return Dataset([MemoryFile("pairs", rows)], schema)


def names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*.{suffix}"))


async def test_vectors_and_metadata_match_file_by_file(server: FakeServer, folder: Path) -> None:
    """Behind rows that failed, and past the tenth file, in the order in which readers sort the names."""
    for row in range(0, 60, 7):
        server.fail_input(b"image %d" % row)
    for row in range(5, 10):
        server.fail_input(f"text {row}", reason="TEXT_EMPTY")

    ledger = await embed_dataset(pairs(60), folder, server.target, layout=ClipRetrievalSink, rows_per_shard=5)

    images, texts, metadata = (
        sorted((folder / name).iterdir()) for name in ("img_emb", "text_emb", "metadata")
    )
    assert ledger.failed.total() == 9 + 5 - 1
    assert len(images) == len(texts) == len(metadata) == 11  # a shard in which all rows failed has no files
    kept = [row for row in range(60) if row % 7 and not 5 <= row < 10]
    table = pa.concat_tables(pq.read_table(path) for path in metadata)
    assert table["key"].to_pylist() == [f"k{row}" for row in kept]
    assert table["caption"].to_pylist() == [f"text {row}" for row in kept]
    assert table.column_names == ["image_path", "caption", "key", "url", "source_key"]
    np.testing.assert_allclose(
        np.concatenate([np.load(path) for path in images]),
        [server.embedding_of(b"image %d" % row) for row in kept],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        np.concatenate([np.load(path) for path in texts]),
        [server.embedding_of(f"text {row}") for row in kept],
        atol=1e-6,
    )
    for one, other, third in zip(images, texts, metadata, strict=True):
        assert len(np.load(one)) == len(np.load(other)) == pq.read_metadata(third).num_rows


async def test_the_files_are_named_as_clip_retrieval_names_them(server: FakeServer, folder: Path) -> None:
    """With a padded number of file and shard."""
    await embed_dataset(pairs(2), folder, server.target, layout=ClipRetrievalSink, dtype="float16")

    assert names(folder / "img_emb", "npy") == ["img_emb_00000-00000.npy"]
    assert names(folder / "text_emb", "npy") == ["text_emb_00000-00000.npy"]
    assert names(folder / "metadata", "parquet") == ["metadata_00000-00000.parquet"]
    vectors = np.load(folder / "img_emb/img_emb_00000-00000.npy")
    assert (vectors.shape, vectors.dtype) == ((2, 8), np.float16)


async def test_a_missing_file_of_a_shard_does_the_whole_shard_again(server: FakeServer, folder: Path) -> None:
    """Its other files are replaced together with it."""
    await embed_dataset(pairs(10), folder, server.target, layout=ClipRetrievalSink, rows_per_shard=5)
    (folder / "text_emb/text_emb_00000-00001.npy").unlink()

    ledger = await embed_dataset(pairs(10), folder, server.target, layout=ClipRetrievalSink, rows_per_shard=5)

    assert (ledger.rows_out, len(np.load(folder / "text_emb/text_emb_00000-00001.npy"))) == (10, 5)
