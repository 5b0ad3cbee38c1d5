"""The table of what was found: as wide as the terminal, one line a row, whatever the rows have."""

from __future__ import annotations

import pytest
from alignserve._cli.hits_table import table
from alignserve.search.store import Hit
from alignserve.search.visible import visible


def test_rows_have_rank_similarity_key_and_columns() -> None:
    """Numbers are aligned to the right, texts to the left."""
    hits = [Hit("a.jpg", 0.51236, {"license": "CC0", "width": 640}), Hit("bb.jpg", -0.1, {"width": 9})]

    assert table(hits, 80).splitlines() == [
        "rank  similarity  key     license  width",
        "────  ──────────  ──────  ───────  ─────",
        "   1      0.5124  a.jpg   CC0      640",
        "   2     -0.1000  bb.jpg           9",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Long keys lose their beginning, since a file's name is at the end of its path; columns are left out."""
    hits = [
        Hit(f"folder/{'x' * 100}/{row}.jpg", 0.5, {"text": "y" * 300, "url": "z" * 300}) for row in range(12)
    ]

    lines = table(hits, width).splitlines()

    assert len(lines) == 14
    assert max(map(len, lines)) <= max(width, 36)
    assert "3.jpg" in lines[5]


def test_control_characters_are_made_visible() -> None:
    """A key cannot move the cursor, change colors, or make a second line."""
    (line,) = table([Hit("a\nb\x1b[31m\u202ec\udcff", 0.5, {"text": "x\x07\ny"})], 100).splitlines()[2:]

    assert line.split() == ["1", "0.5000", r"a\nb\x1b[31m\u202ec\xff", r"x\x07", "y"]


def test_wide_characters_take_two_places() -> None:
    """Columns line up in a terminal."""
    first, second = table([Hit("猫", 0.5, {"a": "x"}), Hit("cats", 0.5, {"a": "x"})], 80).splitlines()[2:]

    assert first.index("x") + 1 == second.index("x")


def test_visible_text_is_as_it_was() -> None:
    """Only what cannot be seen is replaced."""
    assert visible("plain ünï 猫 \\n") == "plain ünï 猫 \\n"
    assert visible("\U000e0001") == r"\U000e0001"
