"""Rows that are picked by the keys of an earlier run's failures."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignserve.datasets.selection import Selection

from tests.client.datasets.memory import text_dataset


def test_only_the_rows_of_the_file_are_read(tmp_path: Path) -> None:
    """Their positions are those of the whole file, so that a run over them can be resumed."""
    failures = tmp_path / "failures.jsonl"
    failures.write_text('{"key": "f0-1", "reason": "BAD"}\n\n{"key": "f1-0"}\n')

    selected = Selection.read(failures).of(text_dataset(3, 2))

    read = [[(row.key, cursor) for row, cursor in file.rows()] for file in selected.files]
    assert read == [[("f0-1", 2)], [("f1-0", 1)]]
    assert [file.name for file in selected.files] == ["file-0", "file-1"]


def test_the_digest_is_of_the_keys(tmp_path: Path) -> None:
    """Their order and reasons do not matter."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text('{"key": "a"}\n{"key": "b", "reason": "x"}\n')
    other.write_text('{"key": "b"}\n{"key": "a"}\n')

    assert Selection.read(one).digest == Selection.read(other).digest


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"key": 1}'])
def test_a_line_without_a_key_is_named(tmp_path: Path, line: str) -> None:
    """Nothing is embedded by mistake."""
    file = tmp_path / "failures.jsonl"
    file.write_text(f'{{"key": "a"}}\n{line}\n')

    with pytest.raises(ValueError, match="line 2"):
        Selection.read(file)
