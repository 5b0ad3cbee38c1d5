"""Lists of hashes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.curate.duplicates import HashListError, PhashSet

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
