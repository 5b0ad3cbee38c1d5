"""Lists of hashes, and rows that look alike by their vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.curate.duplicates import HashListError, NearDuplicates, PhashSet, load_embeddings
from numpy.typing import NDArray

_HASHES = ["c9b6a7d8469c1959", "0000000000000000", "ffffffffffffffff"]


class TestLists:
    """External lists of hashes."""

    @pytest.mark.parametrize(
        "text",
        [
            "\n".join(_HASHES),
            "\r\n".join(_HASHES) + "\r\n",
            "\ufeff" + "\n".join(_HASHES).upper(),
            "# ImageNet\n\n" + "\n".join(f"  {one}\t" for one in _HASHES) + "\n\n",
            "\n".join(_HASHES * 3),
        ],
        ids=["plain", "CRLF", "BOM and capitals", "comments and spaces", "repeated"],
    )
    def test_a_text_has_one_hash_a_line(self, text: str, tmp_path: Path) -> None:
        """As any program may write it."""
        (tmp_path / "list.txt").write_text(text, encoding="utf-8", newline="")

        found = PhashSet.load(tmp_path / "list.txt")

        assert (len(found), sorted(found)) == (3, sorted(_HASHES))
        assert all(one in found for one in _HASHES)
        assert "c9b6a7d8469c1958" not in found
        assert None not in found

    @pytest.mark.parametrize("names", [("image_phash", "id"), ("phash", "id"), ("other",)])
    def test_parquet_has_a_column(self, names: tuple[str, ...], tmp_path: Path) -> None:
        """As COYO-700M's own files have it; nulls do not count."""
        columns = {name: [*_HASHES, None] for name in names}
        pq.write_table(pa.table(columns), tmp_path / "list")

        assert sorted(PhashSet.load(tmp_path / "list")) == sorted(_HASHES)

    def test_lists_are_joined(self, tmp_path: Path) -> None:
        """Of both kinds; none is an empty set."""
        (tmp_path / "a").write_text(_HASHES[0])
        pq.write_table(pa.table({"phash": _HASHES[1:]}), tmp_path / "b")

        assert len(PhashSet.load(tmp_path / "a", tmp_path / "b")) == 3
        assert len(PhashSet.load()) == 0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"c9b6a7d8469c1959\nc9b6\n", "list:2: 'c9b6' is not a hash of 16 hexadecimal digits"),
            (b"c9b6a7d8469c1959ffff", "list:1"),
            (b"photo.jpg", "list:1"),
            (b"\xff\xfe\x00", "neither text nor Parquet"),
            (b"PAR1 and then nothing", "list"),
        ],
    )
    def test_a_list_of_anything_else_is_refused(self, content: bytes, message: str, tmp_path: Path) -> None:
        """A list that was read wrongly would exclude nothing, in silence."""
        (tmp_path / "list").write_bytes(content)

        with pytest.raises(HashListError, match=message):
            PhashSet.load(tmp_path / "list")

    def test_a_missing_list_is_named(self, tmp_path: Path) -> None:
        """And so is a Parquet file without such a column."""
        with pytest.raises(HashListError, match="missing: No such file"):
            PhashSet.load(tmp_path / "missing")
        pq.write_table(pa.table({"a": _HASHES, "b": _HASHES}), tmp_path / "b")
        with pytest.raises(HashListError, match="has no column image_phash or phash or hash"):
            PhashSet.load(tmp_path / "b")


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _groups(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Returns vectors, many of which are close to some others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(rows // 4, 16))
    return _unit(centres[rng.integers(0, len(centres), rows)] + rng.normal(scale=0.15, size=(rows, 16)))


def _expected(vectors: NDArray[np.float32], bound: float, is_in: NDArray[np.bool_]) -> list[int]:
    """Decides row by row, in the plainest way."""
    found: list[int] = []
    for row, vector in enumerate(vectors):
        near = (
            other
            for other in range(row)
            if is_in[other] and found[other] < 0 and np.float32(vector @ vectors[other]) >= np.float32(bound)
        )
        found.append(next(near, -1) if is_in[row] else -1)
    return found


class TestNearDuplicates:
    """Rows whose vectors are close."""

    @pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
    def test_blocks_decide_as_row_by_row(self, block_rows: int) -> None:
        """Whatever the size of the blocks."""
        vectors = _groups(200)
        is_in = np.random.default_rng(1).random(200) > 0.2

        found = np.concatenate(list(NearDuplicates(vectors, 0.95, block_rows).blocks(is_in)))

        assert found.tolist() == _expected(vectors, 0.95, is_in)
        assert 20 < np.count_nonzero(found >= 0) < 150

    def test_a_row_that_goes_takes_no_other_with_it(self) -> None:
        """Of a chain of rows, each close to the next, every other one stays."""
        angles = np.deg2rad([0, 10, 20, 30, 40])
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

        (found,) = NearDuplicates(vectors, float(np.cos(np.deg2rad(15)))).blocks()

        assert found.tolist() == [-1, 0, -1, 2, -1]

    def test_it_resumes_where_it_was(self) -> None:
        """What was decided is not compared again, and the rest is the same."""
        near = NearDuplicates(_groups(300), 0.95, 64)
        whole = list(near.blocks())

        resumed = list(near.blocks(decided=np.concatenate(whole[:2])))

        assert np.concatenate(resumed).tolist() == np.concatenate(whole[2:]).tolist()

    @pytest.mark.parametrize("bound", [0, -0.5, 1.1, float("nan")])
    def test_a_bound_must_be_a_cosine(self, bound: float) -> None:
        """0.95, for example."""
        with pytest.raises(ValueError, match="is not above 0 and at most 1"):
            NearDuplicates(_groups(8), bound)


class TestEmbeddings:
    """Vectors of an `embed-dataset` output."""

    @pytest.mark.parametrize("dtype", [pa.float32(), pa.float16()])
    def test_parts_are_read_in_their_order(self, dtype: pa.DataType, tmp_path: Path) -> None:
        """As normalized float32, whatever they were stored as."""
        vectors = _groups(40)
        for part in range(2):
            rows = vectors[20 * part : 20 * part + 20]
            flat = pa.array(rows.ravel().astype(dtype.to_pandas_dtype()), dtype)
            table = pa.table(
                {
                    "key": [f"{part}-{row}" for row in range(20)],
                    "image_embedding": pa.FixedSizeListArray.from_arrays(flat, 16),
                }
            )
            pq.write_table(table, tmp_path / f"part-{part}.parquet")

        keys, found = load_embeddings(sorted(tmp_path.glob("*.parquet")), "image_embedding", tmp_path / "vectors")

        assert keys == [f"{part}-{row}" for part in range(2) for row in range(20)]
        assert found == pytest.approx(vectors, abs=1e-3)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)

    def test_no_vectors_are_an_error(self, tmp_path: Path) -> None:
        """Rather than no duplicates."""
        with pytest.raises(ValueError, match="no vectors"):
            load_embeddings([], "image_embedding", tmp_path / "vectors")
