"""Folders of vectors: which are accepted, and the rows of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.search.vectors import VectorFolder, VectorsError, column_of, sample_rows, vectors_of


def test_rows_are_taken_by_number_across_parts_and_row_groups(write_folder: Any) -> None:
    """A sample has exactly the rows that were drawn, in order."""
    folder = VectorFolder.open(write_folder(image=np.eye(40), parts=3))
    numbers = np.array([0, 6, 7, 13, 14, 20, 27, 39])

    table = folder.take(numbers, ["key", "image_embedding"])

    assert table.column("key").to_pylist() == [f"row-{number}" for number in numbers]
    assert np.array_equal(vectors_of(table.column("image_embedding"))[1], np.eye(40)[numbers])


def test_batches_number_their_rows(write_folder: Any) -> None:
    """Batches of all parts together have every row once."""
    folder = VectorFolder.open(write_folder(image=np.eye(20), parts=3))

    found = [
        (first + position, key)
        for first, batch in folder.batches(["key"], rows=4)
        for position, key in enumerate(batch.column(0).to_pylist())
    ]

    assert found == [(number, f"row-{number}") for number in range(20)]


def test_null_vectors_keep_their_places() -> None:
    """Rows without a vector are told apart, also in a slice, and are written as null again."""
    column = pa.array([[1.0, 2.0], None, [3.0, 4.0], None], pa.list_(pa.float32(), 2))

    is_there, vectors = vectors_of(column)
    sliced, after = vectors_of(column[1:])

    assert is_there.tolist() == [True, False, True, False]
    assert vectors.tolist() == [[1, 2], [3, 4]]
    assert (sliced.tolist(), after.tolist()) == ([False, True, False], [[3, 4]])
    assert column_of(is_there, vectors).to_pylist() == column.to_pylist()


@pytest.mark.parametrize(("rows", "count"), [(10, 10), (10, 20), (1_000_000, 1000), (0, 5)])
def test_a_sample_has_no_row_twice(rows: int, count: int) -> None:
    """Rows are drawn without repetition, ascending, and the same ones for the same seed."""
    numbers = sample_rows(rows, count, seed=3)

    assert len(numbers) == min(rows, count)
    assert np.all(np.diff(numbers) > 0)
    assert np.array_equal(numbers, sample_rows(rows, count, seed=3))


def test_parts_of_two_models_are_refused(write_folder: Any) -> None:
    """A part with another fingerprint is named."""
    folder, other = (
        write_folder("one", image=np.eye(4)),
        write_folder("two", image=np.eye(4), fingerprint="new"),
    )
    (other / "part-00000-00000.parquet").rename(folder / "part-00009-00000.parquet")

    with pytest.raises(VectorsError, match=r"part-00009.*fingerprint"):
        VectorFolder.open(folder)


def test_a_folder_that_lacks_a_part_is_refused(run: Any, clouds: dict[str, Any], write_folder: Any) -> None:
    """Such as one that was copied in part: its other rows are not all rows of the job."""
    source = write_folder(**clouds)
    small = source.parent / "small"
    assert run("compact-vectors", source, "--to", small, "--dtype", "int8")[0] == 0
    VectorFolder.open(small)
    min(small.glob("*.parquet")).unlink()

    with pytest.raises(VectorsError, match=r"150 rows in its parts, but .* counts 300: parts are missing"):
        VectorFolder.open(small)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [({"state": "running"}, "has not finished"), ([], "not a manifest")],
)
def test_a_folder_that_is_being_written_is_refused(write_folder: Any, manifest: Any, message: str) -> None:
    """Its rows are not all there."""
    folder = write_folder(image=np.eye(4), manifest=manifest)

    with pytest.raises(VectorsError, match=message):
        VectorFolder.open(folder)


def test_what_has_no_vectors_is_refused(tmp_path: Any) -> None:
    """The message says which columns are expected, or that there are no files."""
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "plain.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("text")

    for path, message in [
        ("plain.parquet", "image_embedding or text_embedding"),
        ("empty", "no Parquet files"),
        ("nowhere", "no Parquet files"),
        ("text.parquet", "text.parquet: "),
    ]:
        with pytest.raises(VectorsError, match=message):
            VectorFolder.open(tmp_path / path)
