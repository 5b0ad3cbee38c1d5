"""Cursors are exact: whatever a file holds, reading on from any of them gives the rest of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.client.datasets.reading import opened, tar_of, whole_part

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
pieces = st.sampled_from(['"', '""', "\n", "\r\n", "\r", ",", "a", "é", "\u2028", " ", "\n\n"])
cells = st.lists(pieces, max_size=5).map("".join)


def write_csv(path: Path, parts: list[str]) -> None:
    path.write_bytes(b"text,n\n" + "".join(parts).encode())


def write_json_lines(path: Path, parts: list[str]) -> None:
    """Whole lines, and whatever lies between them."""
    lines = [json.dumps({"text": part}, ensure_ascii=False) if len(part) % 2 else part for part in parts]
    path.write_text('{"text": "a"}\n' + "\n".join(lines), newline="")


def write_parquet(path: Path, parts: list[str]) -> None:
    with parquet.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for start in range(0, len(parts) + 1, 2):
            writer.write_table(pa.table({"text": pa.array(parts[start : start + 2], pa.string())}))


def write_tar(path: Path, parts: list[str]) -> None:
    """Members of few keys in any order, apart and twice."""
    names = [(f"{'abc'[len(part) % 3]}.{'txt' if part else 'jpg'}", part.encode()) for part in parts]
    path.write_bytes(tar_of([("0.jpg", b"image"), ("0.txt", b"text"), *names]))


def write_broken_tar(path: Path, parts: list[str]) -> None:
    write_tar(path, parts)
    content = path.read_bytes()
    path.write_bytes(content[: 2600 + len(parts) * 300])


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "a.csv": write_csv,
    "a.jsonl": write_json_lines,
    "a.parquet": write_parquet,
    "a.tar": write_tar,
    "broken.tar": write_broken_tar,
}


@pytest.mark.parametrize("name", WRITERS)
def test_reading_on_gives_the_rest(name: str) -> None:
    """The same rows with the same keys, and the same end."""

    @few
    @given(st.lists(cells, max_size=8))
    def check(parts: list[str]) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, name)
            WRITERS[name](path, parts)
            (file,) = opened(path, max_row_bytes=40).files

            found, end = whole_part(file)

            assert len({row.key for row, _ in found}) == len(found)
            assert len({cursor for _, cursor in found}) == len(found)
            for number, (_, cursor) in enumerate(found, start=1):
                assert whole_part(file, cursor) == (found[number:], end)

    check()


def test_reading_on_in_a_folder_gives_the_rest(tmp_path: Path) -> None:
    """A block's cursors count its files."""
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(f"{number}".encode())
    (file,) = opened(tmp_path).files

    found = list(file.rows())

    for number, (_, cursor) in enumerate(found, start=1):
        assert list(file.rows(cursor)) == found[number:]


def test_reading_on_in_parquet_passes_over_batches(tmp_path: Path) -> None:
    """Row groups of more rows than a batch."""
    values = [f"{number}" for number in range(3000)]
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet", row_group_size=1300)
    (file,) = opened(tmp_path).files

    for start in (0, 1, 511, 512, 513, 1299, 1300, 1301, 2999, 3000):
        assert [row.text for row, _ in file.rows(start)] == values[start:]


def test_line_numbers_do_not_depend_on_where_reading_starts(tmp_path: Path) -> None:
    """Keys are line numbers, cursors are positions; lines before the start are counted in blocks."""
    lines = "".join(f'"line {number}\n",{"x" * 500}\n' for number in range(6000))
    (tmp_path / "a.csv").write_text("text,n\n" + lines)
    (file,) = opened(tmp_path).files
    found = list(file.rows())

    assert list(file.rows(found[-2][1])) == found[-1:]
    assert found[-1][0].key == f"a.csv:{2 + 5999 * 2}"


def write_random_csv(path: Path, rows: list[list[str]]) -> None:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes("\r\n".join(["text,n", *quoted]).encode())


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2)))
def test_quoted_cells_survive(rows: list[list[str]]) -> None:
    """Any Unicode text, byte for byte."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        write_random_csv(path, rows)
        (file,) = opened(path, columns=["n"]).files

        assert [[row.text, row.columns["n"]] for row, _ in file.rows()] == rows
