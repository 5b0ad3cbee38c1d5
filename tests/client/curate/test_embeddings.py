"""Embeddings that are read next to the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.curate.embeddings import RowEmbeddings, check_embeddings, digest

_FLOATS = pa.list_(pa.float32(), 2)


def _write(
    folder: Path, keys: Sequence[str], vectors: Sequence[Any], kind: pa.DataType = _FLOATS, part: int = 0
) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table({"key": keys, "image_embedding": pa.array(vectors, kind)})
    pq.write_table(table, folder / f"part-{part:05}.parquet")
    return folder


def _rows(*keys: str, failed: str = "") -> list[tuple[int, dict[str, Any]]]:
    return [
        (10 + number, {"key": key, "failure_reason": "IMAGE_TOO_LARGE" if key == failed else None})
        for number, key in enumerate(keys)
    ]


@pytest.mark.parametrize("kind", [_FLOATS, pa.list_(pa.float16(), 2), pa.list_(pa.float64())])
def test_parts_are_read_in_their_order(kind: pa.DataType, tmp_path: Path) -> None:
    """As normalized float32, whatever they were stored as."""
    folder = tmp_path / "vectors"
    for part in range(2):
        dtype = kind.value_type.to_pandas_dtype()
        _write(folder, [f"{part}-a", f"{part}-b"], list(np.array([[3, 4], [0, 2]], dtype)), kind, part)
    embeddings = RowEmbeddings(folder, tmp_path / "scratch")

    missing = embeddings.add(_rows("0-a", "0-b", "x", "1-a")) + embeddings.add([(20, _rows("1-b")[0][1])])
    rows, found = embeddings.finish()

    assert missing == 1
    assert rows.tolist() == [10, 11, 13, 20]
    assert found == pytest.approx(np.array([[0.6, 0.8], [0, 1], [0.6, 0.8], [0, 1]]))
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "vector", [None, [float("nan"), 1], [float("inf"), 1], [0, 0]], ids=["null", "NaN", "infinity", "zero"]
)
def test_a_vector_without_a_direction_is_missing(vector: list[float] | None, tmp_path: Path) -> None:
    """Its row is counted as one that cannot be judged, and spoils no other."""
    embeddings = RowEmbeddings(_write(tmp_path / "v", ["a", "b"], [vector, [0, 1]]), tmp_path / "scratch")

    assert embeddings.add(_rows("a", "b")) == 1
    rows, found = embeddings.finish()

    assert (rows.tolist(), found.tolist()) == ([11], [[0, 1]])


def test_huge_and_tiny_vectors_have_a_direction(tmp_path: Path) -> None:
    """Their squares do not fit into float32."""
    folder = _write(tmp_path / "v", ["a", "b"], [[3e38, 0], [0, 1e-38]])
    embeddings = RowEmbeddings(folder, tmp_path / "scratch")

    embeddings.add(_rows("a", "b"))

    assert embeddings.finish()[1].tolist() == [[1, 0], [0, 1]]


def test_the_embedding_of_a_failed_row_is_passed_over(tmp_path: Path) -> None:
    """The server may read pictures that are beyond the limits here."""
    embeddings = RowEmbeddings(_write(tmp_path / "v", ["a", "b"], [[1, 0], [0, 1]]), tmp_path / "scratch")

    assert embeddings.add(_rows("a", "b", failed="a")) == 0
    assert embeddings.finish()[0].tolist() == [11]


def test_no_row_has_an_embedding(tmp_path: Path) -> None:
    """Which is not an error: all pictures may have failed."""
    embeddings = RowEmbeddings(_write(tmp_path / "v", [], []), tmp_path / "scratch")

    assert embeddings.add(_rows("a")) == 1
    assert [len(found) for found in embeddings.finish()] == [0, 0]


def test_embeddings_of_other_rows_are_refused(tmp_path: Path) -> None:
    """The first one that does not fit is named."""
    embeddings = RowEmbeddings(_write(tmp_path / "v", ["b", "a"], [[1, 0], [0, 1]]), tmp_path / "scratch")
    embeddings.add(_rows("a", "b"))

    with pytest.raises(ValueError, match="an embedding of 'a', which is not the next row"):
        embeddings.finish()


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    """Their vectors have different dimensions."""
    folder = _write(tmp_path / "v", ["a"], [[1, 0]])
    _write(folder, ["b"], [[1, 0, 0]], pa.list_(pa.float32(), 3), part=1)

    with pytest.raises(ValueError, match="dimension 2 and of 3"):
        RowEmbeddings(folder, tmp_path / "scratch").add(_rows("a", "b"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "has no part-….parquet; give the output of alignserve embed-dataset"),
        ({"key": ["a"], "text_embedding": [[1.0, 0.0]]}, "has no column image_embedding"),
        ({"image_embedding": [[1.0, 0.0]]}, "has no column key"),
        ({"key": ["a"], "image_embedding": [b"\x01"]}, "has binary in column image_embedding"),
        ({"key": ["a"], "image_embedding": [[1, 2]]}, "not lists of floats"),
    ],
)
def test_another_folder_is_refused(table: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    """Before a row is measured."""
    if table is not None:
        pq.write_table(pa.table(table), tmp_path / "part-00000-00000.parquet")

    with pytest.raises(ValueError, match=message):
        check_embeddings(tmp_path)


def test_the_digest_follows_the_vectors(tmp_path: Path) -> None:
    """So that a run is not resumed with others; where the folder is does not matter."""
    folders = [_write(tmp_path / name, ["a"], [[1, 0]]) for name in "ab"] + [
        _write(tmp_path / "c", ["a"], [[1, 1]])
    ]

    first, same, other = map(digest, folders)

    assert first == same != other


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    """Wherever it breaks off."""
    folder = _write(tmp_path / "v", ["a"], [[1, 0]])
    (folder / "part-00001.parquet").write_bytes(b"PAR1 and then nothing")

    with pytest.raises(ValueError, match="part-00001"):
        RowEmbeddings(folder, tmp_path / "scratch").add(_rows("a", "b"))
