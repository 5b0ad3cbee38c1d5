"""The vocabulary and the words around a label."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from server.recipes.mini import packages, phrases, vocabulary


def test_special_pieces_characters_and_the_most_used_stay_in_order() -> None:
    """`zebra` is used most, `the` is the first common word, `naïve` is not ASCII."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "the", "naïve", "dog", "zebra"]

    kept = vocabulary.chosen(pieces, {"zebra": 5.0, "dog": 1.0}, common=1, size=9)

    assert kept == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "the", "zebra"]


def test_counts_are_sums_of_weights() -> None:
    """A piece counts as often as it occurs."""
    assert vocabulary.counted([(["a", "b", "a"], 2.0), (["b"], 1.0)]) == {"a": 4.0, "b": 3.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a dog"),
        ("orange", "an orange"),
        ("an empty beach", "an empty beach"),
        ("two dogs", "two dogs"),
    ],
)
def test_a_name_gets_an_article_unless_it_has_one(name: str, expected: str) -> None:
    """So that templates read as people write."""
    assert phrases.with_article(name) == expected


def test_writing_is_the_same_for_the_same_seed() -> None:
    """Training depends on it."""
    first, second = (
        [phrases.written("dog", np.random.default_rng(3), adjective=0.5) for _ in range(5)] for _ in range(2)
    )

    assert first == second


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """The digest decides, not the file's name."""
    package = packages.Package("x", "1", "x-1.whl", hashlib.sha256(b"good").hexdigest())
    (tmp_path / "x-1.whl").write_bytes(b"bad")

    with pytest.raises(ValueError, match=r"x-1\.whl has SHA-256"):
        packages.fetch(package, tmp_path)
